"""Turns of a conversation, as short as can be."""


def user(content):
    return {"role": "user", "content": content}


def bot(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


HI, GOOD, BAD = [user("Hi")], [bot("Hello!")], [bot("What?")]
