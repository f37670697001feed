"""Rows as labelling platforms export them, for tests: all keys that they write, values written here."""

from __future__ import annotations

FIELDS = ("How much are the eggs?", "Four dollars.", "Ask someone else.")
TIME = "2026-03-09T22:16:08.728353Z"


def said(name, kind, **value):
    """One part of an annotation of Label Studio's."""
    return {
        "value": value,
        "id": "Dx_aB91ISN",
        "from_name": name,
        "to_name": "answer1",
        "type": kind,
        "origin": "manual",
    }


def annotation(*result, completed_by=1, was_cancelled=False):
    return {
        "id": 7,
        "completed_by": completed_by,
        "result": list(result),
        "was_cancelled": was_cancelled,
        "ground_truth": False,
        "created_at": TIME,
        "updated_at": TIME,
        "draft_created_at": None,
        "lead_time": 4.288,
        "prediction": {},
        "result_count": len(result),
        "unique_id": "0f4a0e3a-1d55-4f5e-b3f5-4f6a3a2a7e51",
        "import_id": None,
        "last_action": None,
        "bulk_created": False,
        "task": 1,
        "project": 83,
        "updated_by": 1,
        "parent_prediction": None,
        "parent_annotation": None,
        "last_created_by": None,
    }


def task(*annotations, **data):
    """A task as Label Studio's JSON export has it."""
    prompt, first, second = FIELDS
    return {
        "id": 1,
        "annotations": list(annotations),
        "file_upload": "0a1b2c3d-tasks.json",
        "drafts": [],
        "predictions": [],
        "data": {"prompt": prompt, "answer1": first, "answer2": second, **data},
        "meta": {},
        "created_at": TIME,
        "updated_at": TIME,
        "allow_skip": True,
        "inner_id": 1,
        "total_annotations": len(annotations),
        "cancelled_annotations": 0,
        "total_predictions": 0,
        "comment_count": 0,
        "unresolved_comment_count": 0,
        "last_comment_updated_at": None,
        "project": 83,
        "updated_by": 1,
        "comment_authors": [],
    }


def record(**responses):
    """A record as `dataset.records.to_json` of Argilla 2 has it; responses by question, then by user."""
    prompt, first, second = FIELDS
    return {
        "id": "p1",
        "fields": {"prompt": prompt, "response1": first, "response2": second},
        "metadata": {},
        "suggestions": {"preference": {"value": "response2", "score": 0.7, "agent": "judge"}},
        "responses": {
            question: [{"value": value, "user_id": user} for user, value in by_user.items()]
            for question, by_user in responses.items()
        },
        "vectors": {},
        "status": "completed" if responses else "pending",
        "_server_id": "3f2d9a4e-8d5a-4d43-9d9f-6f5b6a2d1c11",
    }
