"""Formats in, one canonical form out.

Nothing is imported here: the command line asks `endings` which files there are before it needs anything that reads one.
"""
