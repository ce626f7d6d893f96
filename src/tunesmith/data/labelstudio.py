"""Label Studio: the review queue as tasks, and its annotations as decisions.

What lives here: the JSON that Label Studio imports and exports (its documentation, "Label Studio JSON format of
annotated tasks", release 1.23), and the labelling config that fits it. What does not: a client of its server; its own
import and export carry the files.

    with path.open("w") as handle: write_tasks(handle, queue)       # Import in Label Studio
    read_annotations(Path("export.json"))                           # its JSON export -> decisions
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from tunesmith.data.review import VERDICTS, Decision, decision_from
from tunesmith.data.review_queue import QueueItem, shown_text, with_answer
from tunesmith.errors import DataError
from tunesmith.types import JSON, Conversation

CONFIG = """<View>
  <Header value="$machine"/>
  <Text name="detail" value="$detail"/>
  <Text name="conversation" value="$conversation"/>
  <Text name="twin" value="$twin"/>
  <Choices name="decision" toName="conversation" choice="single" required="true" showInline="true">
    <Choice value="keep"/>
    <Choice value="drop"/>
    <Choice value="edit"/>
  </Choices>
  <TextArea name="answer" toName="conversation" value="$answer" rows="6" maxSubmissions="1" editable="true"
            visibleWhen="choice-selected" whenTagName="decision" whenChoiceValue="edit" placeholder="The right answer"/>
  <TextArea name="reason" toName="conversation" maxSubmissions="1" placeholder="Why"/>
</View>
"""
"""Paste it under Settings, Labeling Interface, Code."""
SOURCE = "tunesmith"


def write_tasks(handle: IO[str], items: Iterable[QueueItem]) -> int:
    """Write a JSON list of tasks, one a line, and return how many."""
    count = 0
    handle.write("[")
    for item in items:
        handle.write(",\n" if count else "\n")
        handle.write(json.dumps(_task(item), ensure_ascii=False))
        count += 1
    handle.write("\n]\n")
    return count


def _task(item: QueueItem) -> dict[str, JSON]:
    verdict = "drop" if item.machine.startswith("dropped") else "keep"
    choice: dict[str, JSON] = {
        "from_name": "decision",
        "to_name": "conversation",
        "type": "choices",
        "value": {"choices": [verdict]},
    }
    return {
        "data": {
            "content_hash": item.content_hash,
            "row_id": item.row_id,
            "stratum": item.stratum,
            "place": item.place,
            "machine": item.machine,
            "detail": item.detail or "nothing was said of it",
            "conversation": shown_text(item.conversation),
            "twin": "no other row is involved" if item.twin is None else shown_text(item.twin),
            "answer": item.conversation.answer or "",
            "row": item.conversation.to_json(),
        },
        "predictions": [{"model_version": SOURCE, "result": [choice]}],
    }


def read_annotations(path: Path) -> list[Decision]:
    """Read Label Studio's JSON export: each annotation that was not cancelled is a decision.

    Raises `DataError` naming task and field where the export is of other tasks.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            "cannot read an export of Label Studio",
            where=str(path),
            expected="its JSON export (not JSON-MIN, not CSV)",
            found=str(error),
        ) from error
    if not isinstance(tasks, list):
        raise DataError("an export of Label Studio is a list of tasks", where=str(path), found=type(tasks).__name__)
    return [
        _decision(task, annotation, f"{path.name}: task {task.get('id', number)}")
        for number, task in enumerate(tasks, start=1)
        for annotation in _annotations(task, f"{path.name}: task {number}")
        if not annotation.get("was_cancelled")
    ]


def _annotations(task: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict) or "content_hash" not in task["data"]:
        raise DataError(
            "this task was not made by tunesmith",
            where=where,
            expected="data with content_hash, as `tunesmith review --export` writes it",
            found=", ".join(task) if isinstance(task, dict) else type(task).__name__,
        )
    found = task.get("annotations", [])
    if not isinstance(found, list):
        raise DataError(
            "this export holds no annotations",
            where=where,
            expected="annotations, as a list",
            hint="export as JSON: JSON-MIN leaves out who said what and when",
        )
    return found


def _decision(task: dict[str, Any], annotation: dict[str, Any], where: str) -> Decision:
    said: dict[str, str] = {}
    for part in annotation.get("result", []):
        value = part.get("value", {})
        words = value.get("choices") or value.get("text") or []
        said[str(part.get("from_name"))] = words if isinstance(words, str) else "\n".join(words)
    verdict = said.get("decision")
    if verdict not in VERDICTS:
        raise DataError(
            "an annotation decides nothing",
            where=where,
            expected=f"decision: one of {', '.join(VERDICTS)}",
            found=repr(verdict),
            hint="the labelling config must be the one that `tunesmith review --export` names",
        )
    out: dict[str, JSON] = {
        "content_hash": task["data"]["content_hash"],
        "decision": verdict,
        "reason": said.get("reason", ""),
        "reviewer": _reviewer(annotation),
        "time": annotation.get("updated_at") or annotation.get("created_at"),
    }
    if verdict == "edit":
        if not said.get("answer"):
            raise DataError(
                "an edit gives no answer", where=where, expected="text in the field answer", found="nothing"
            )
        conversation = Conversation.from_json(task["data"]["row"])
        try:
            out["messages"] = [message.to_json() for message in with_answer(conversation, said["answer"])]
        except ValueError as error:
            raise DataError("this row has no answer to edit", where=where, found="no assistant turn") from error
    return decision_from(out, where=where)


def _reviewer(annotation: dict[str, Any]) -> str:
    """Return who annotated: an e-mail address where the export gives it, else the user's number."""
    by = annotation.get("completed_by")
    if isinstance(by, dict):
        return str(by.get("email") or by.get("username") or by.get("id"))
    return f"labelstudio:{by}"
