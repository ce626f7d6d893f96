"""Exporting: a bundle as a merged folder or a GGUF file that carries its contract, proved before it is kept.

What lives here: finding bundle and base, the order of the steps, what the manifest says. What does not: weights
(`model.export`, `model.gguf_export`), the files beside them (`serve.exported`).

    export("production", "out/desk", to="merged")
    export("out/bundle", "out/desk-gguf", to="gguf", dtype="Q8_0", base="models/base")

Every export is read back from its own files: its next-token probabilities are compared with those of base and adapter
in float32, and the golden vectors are encoded by the tokenizer that it carries.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.api.deployment import Deployable, find_deployable
from tunesmith.core.provenance import package_versions
from tunesmith.errors import PlanError, StoreError
from tunesmith.serve.bundle import Bundle, check_base, file_sha256, holds_whole_model, load_bundle
from tunesmith.serve.exported import Export, ExportKind, load_export, write_beside_weights, write_manifest
from tunesmith.types import JSON, Log, canonical_json, ignore

if TYPE_CHECKING:
    from tunesmith.model.export import Agreement, Reference

__all__ = ["check_export", "export"]

PathLike = str | Path
MAX_PROMPTS = 24
"""Golden prompts on which an export is compared with what was tuned; real ones stand last and are taken first."""


def export(
    target: PathLike | None,
    out: PathLike,
    *,
    to: str,
    dtype: str | None = None,
    base: PathLike | None = None,
    device: str = "auto",
    log: Log = ignore,
    store: PathLike | None = None,
) -> Export:
    """Write a bundle's model to the new folder `out` and return the export as it reads back.

    `to` is `merged` or `gguf`. `dtype` is the number format: for `merged` the base's own by default, or float32,
    bfloat16, float16; for `gguf` F16 by default, or F32, BF16, Q8_0. Raises `PlanError` for what cannot be asked,
    `StoreError` where bundle or base are not there or `out` is, `ServeError` or `ContractError` for a changed bundle,
    `DataError` for a model that GGUF cannot hold, `TrainingError` where the export is not the tuned model.
    """
    from tunesmith.api.machine import this_machine

    kind = _kind(to)
    _check_dtype(kind, dtype)
    target_dir = Path(out)
    if target_dir.exists():
        raise StoreError("there is something already", where=str(target_dir), hint="name a folder that does not exist")
    found = find_deployable(target, store=store)
    base_dir = _base_dir(found, base)
    bundle = load_bundle(found.bundle)
    check_base(bundle, base_dir)
    target_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target_dir.name}.", dir=target_dir.parent))
    try:
        manifest = _write(kind, bundle, base_dir, partial, dtype, this_machine(device).device, log)
        write_manifest(partial, manifest)
        partial.chmod(0o755)
        partial.rename(target_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return load_export(target_dir)


def check_export(folder: PathLike) -> Export:
    """Read an export and refuse one that was changed. Raises `ServeError` or `ContractError` that names the part."""
    return load_export(Path(folder))


def _kind(to: str) -> ExportKind:
    try:
        return ExportKind(to)
    except ValueError as error:
        raise PlanError("nothing can be exported to this", expected="merged or gguf", found=to) from error


def _check_dtype(kind: ExportKind, dtype: str | None) -> None:
    choices = ("float32", "bfloat16", "float16") if kind is ExportKind.MERGED else ("F32", "F16", "BF16", "Q8_0")
    if dtype is not None and dtype not in choices:
        raise PlanError(
            f"{dtype} is no number format of {kind.value}",
            expected=", ".join(choices),
            found=dtype,
        )


def _base_dir(found: Deployable, base: PathLike | None) -> Path:
    base_dir = Path(base) if base is not None else found.base
    if base_dir is None:
        raise StoreError(
            "the store does not have the base model of this bundle",
            where=str(found.bundle / "base.json"),
            hint="give --base FOLDER, or run the recipe's fetch again",
        )
    return base_dir


def _write(
    kind: ExportKind, bundle: Bundle, base_dir: Path, out: Path, dtype: str | None, device: str, log: Log
) -> dict[str, JSON]:
    """Write weights and contract to `out`, measure what was written, and return the manifest."""
    from tunesmith.model.export import base_dtype, on_plain_base, reference_logits, write_merged
    from tunesmith.model.quantised import read_record

    tuned_dir = bundle.root / "adapter"
    prompts = [golden.ids for golden in reversed(bundle.golden)][:MAX_PROMPTS]
    log("export_reference", {"prompts": len(prompts)})
    reference = reference_logits(base_dir, tuned_dir, prompts, device=device)
    facts: dict[str, Any] = {
        "kind": kind.value,
        "name": bundle.name,
        "contract_sha256": bundle.contract.sha256,
        "adapter_sha256": bundle.adapter_sha256,
        "trained": "all weights" if holds_whole_model(bundle.root) else "an adapter",
        "base": {"id": bundle.base.id, "files": dict(bundle.base.files)},
        "promotable": bundle.promotable,
        "evaluated_in": bundle.dtype,
        "versions": dict(package_versions()),
    }
    if (quantisation := read_record(tuned_dir)) is not None:
        log("export_plain_base", {})
        plain = on_plain_base(base_dir, tuned_dir, prompts, reference, device=device)
        facts |= {"trained_on_base_in": str(quantisation), "agreement_on_unquantised_base": plain.to_json()}
    if kind is ExportKind.MERGED:
        used: Any = dtype or base_dtype(base_dir)
        log("export_merge", {"dtype": used})
        facts |= {"dtype": used, "num_parameters": write_merged(base_dir, tuned_dir, out, dtype=used)}
        write_beside_weights(out, bundle.root / "contract", kind=kind)
        agreement = _measure(out, reference, prompts, dtype=used, device=device, where=out)
    else:
        used = dtype or "F16"
        log("export_gguf", {"dtype": used})
        more, agreement = _write_gguf(bundle, base_dir, out, used, reference, prompts, device=device)
        write_beside_weights(out, bundle.root / "contract", kind=kind)
        facts |= {"dtype": used, **more}
    return {**facts, "agreement": agreement.to_json()}


def _measure(
    folder: Path, reference: Reference, prompts: Sequence[Sequence[int]], *, dtype: Any, device: str, where: Path
) -> Agreement:
    from tunesmith.model.export import check_agreement, compare, logits_of
    from tunesmith.model.load import load_model

    agreement = compare(reference, logits_of(load_model(folder, dtype=dtype).to(device), prompts))
    check_agreement(agreement, where=where)
    return agreement


def _write_gguf(
    bundle: Bundle,
    base_dir: Path,
    out: Path,
    quantisation: Any,
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    *,
    device: str,
) -> tuple[dict[str, JSON], Agreement]:
    """Write the file out of a merged float32 folder, read it back as a model of its own, and compare both."""
    import torch

    from tunesmith.model.export import write_merged
    from tunesmith.model.gguf_export import write_gguf
    from tunesmith.model.gguf_import import convert_gguf

    contract = bundle.contract
    file = out / f"{bundle.name}-{quantisation}.gguf"
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        merged, back = Path(scratch) / "merged", Path(scratch) / "back"
        num_parameters = write_merged(base_dir, bundle.root / "adapter", merged, dtype="float32")
        for part in (bundle.root / "contract" / "tokenizer").iterdir():
            shutil.copyfile(part, merged / part.name)
        types = write_gguf(
            merged,
            file,
            quantisation=quantisation,
            name=bundle.name,
            stop_ids=contract.stop_ids,
            contract=canonical_json({"parts": dict(contract.content), "hashes": dict(contract.parts)}),
            contract_sha256=contract.sha256,
        )
        shutil.rmtree(merged)
        convert_gguf(file, back, dtype=torch.float32)
        _check_tokenizer(bundle, back, where=file)
        agreement = _measure(back, reference, prompts, dtype="float32", device=device, where=file)
    facts = {"file": file.name, "file_sha256": file_sha256(file), "num_parameters": num_parameters, "tensors": types}
    return facts, agreement


def _check_tokenizer(bundle: Bundle, folder: Path, *, where: Path) -> None:
    """Raise `ContractError` where the tokenizer and template in a GGUF file give other ids than the contract's."""
    import dataclasses

    from tunesmith.chat.template import ChatTemplate, find_templates
    from tunesmith.chat.tokenizer import Tokenizer

    template = ChatTemplate(find_templates(folder)["default"], name=f"{where.name}: tokenizer.chat_template")
    carried = dataclasses.replace(bundle.contract, tokenizer=Tokenizer.load(folder), template=template)
    carried.replay()
