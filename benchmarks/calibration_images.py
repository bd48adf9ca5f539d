"""INT8 parity with chosen calibration images against random ones of the same footage, on footage held out.

    python benchmarks/calibration_images.py SOURCE… [--bundle starter] [--counts 64 128 256 512] [--seeds 3]
        [--estimator mse] [--json FILE] [--plot FILE.png]

A fifth of the footage is held out: of videos whole blocks of 5 s, of image files every fifth. From the rest images are
chosen as ``edgeclip calibrate images`` does, and as many drawn at random (several times). Each set makes an ``int8``
graph by the same recipe, which is held against FP32 on all held-out frames: cosine of the embeddings (median, 1st
percentile, least), the same after FP32's mean is taken off, and top-1 agreement on the table ``objects``. The
difference of chosen and random has a 95 % interval over held-out blocks or files, drawn again; random figures also
have their spread over seeds. INT8 runs in OpenVINO. Prints the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.bundle import Bundle
from edgeclip.calibration.choice.choose import LEAST_POOL, Pool, distances
from edgeclip.calibration.choice.footage import Footage, Look, Shot, embedded
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.export.int8.quantization import default_recipe, quantize
from edgeclip.prompts import FloatArray, unit_rows
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.images import read_image
from edgeclip.runtime.preprocess.preprocess import Preprocessor

_BATCH = 32
_BLOCK_S = 5.0


def main() -> None:
    """Choose, quantize, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--counts", type=int, nargs="*", default=[64, 128, 256, 512])
    parser.add_argument("--seeds", type=int, default=3, help="random sets of each size")
    parser.add_argument("--estimator", default="mse", help="of ranges: mse, minmax, mean-minmax, percentile")
    parser.add_argument("--every", type=float, default=0.2)
    parser.add_argument("--json", type=Path, help="write the figures; with no SOURCE, read them to plot again")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    if given.sources:
        found = measure(given)
        if given.json:
            given.json.write_text(json.dumps(found, indent=1))
    else:
        found = json.loads(given.json.read_text())
    if given.plot:
        plot(found, given.plot)


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a size."""
    bundle = Bundle.open(given.bundle)
    encoder, fp32 = bundle.manifest.encoder, bundle.variant_path("fp32")
    preprocessor = Preprocessor(encoder.preprocess)
    candidates: list[Look] = []  # with what the encoder sees for pixels
    held_out: list[Look] = []
    blocks: list[str] = []
    with (
        Footage(given.sources, every_s=given.every) as footage,
        ImageEncoder(bundle, engine="openvino") as image_encoder,
    ):
        for look in embedded(footage, image_encoder):
            small = look.shot._replace(pixels=preprocessor.resize(look.shot.pixels), path=None)
            if (block := held_block(look.shot)) is None:
                candidates.append(look._replace(shot=small))
            else:
                held_out.append(look._replace(shot=small))
                blocks.append(block)
    held, held_rows = pixels_of(held_out), np.stack([look.row for look in held_out])
    recipe = msgspec.structs.replace(default_recipe(fp32), range_estimator=given.estimator)
    table = bundle.table("objects").embeddings if bundle.manifest.tables else None
    with load_engine("openvino", fp32, encoder, precision="fp32") as engine:
        reference = np.concatenate([engine.infer(part) for part in parts(preprocessor, held)])
    print(
        f"{bundle.manifest.model.id}, {recipe.range_estimator}: {len(candidates):,} frames to choose from, "
        f"{len(held)} held out in {len(set(blocks))} blocks",
        flush=True,
    )
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "int8.onnx"

        def int8(images: FloatArray) -> FloatArray:
            quantize(fp32, target, images, recipe)
            with load_engine("openvino", target, encoder, precision="int8") as engine:
                return np.concatenate([engine.infer(part) for part in parts(preprocessor, held)])

        for count in given.counts:
            folder = Path(scratch) / f"pool-{count}"
            folder.mkdir()
            pool = Pool(max(4 * count, LEAST_POOL), folder, seed=0)
            for look in candidates:
                if look.changed:
                    pool.offer(look)
            chosen = [found for found, _ in pool.choose(count)]
            small = np.stack([read_image(found.place) for found in chosen])
            runs = [int8(preprocessor.normalise_batch(small))]
            rows = [np.stack([found.look.row for found in chosen])]
            for seed in range(given.seeds):
                drawn = np.random.default_rng(seed).choice(len(candidates), len(chosen), replace=False)
                runs.append(int8(preprocessor.normalise_batch(pixels_of([candidates[n] for n in drawn]))))
                rows.append(np.stack([candidates[n].row for n in drawn]))
            near = [float(np.percentile(distances((held_rows @ own.T).max(axis=1)), 95)) for own in rows]
            figures = [figures_of(reference, run, table) for run in runs]
            each = np.stack([centred(reference, run) for run in runs])  # (1 + seeds, N)
            gain = each[0] - each[1:].mean(axis=0)
            low, high = np.percentile([gain[at].mean() for at in block_draws(blocks)], [2.5, 97.5])
            result = {
                "count": len(chosen),
                "asked": count,
                "chosen": figures[0],
                "random": figures[1:],
                "gain": [float(gain.mean()), float(low), float(high)],
                "radius": [near[0], float(np.mean(near[1:]))],
            }
            results.append(result)
            show(result)
    print(f"on {summary(describe_machine())}")
    return results


def held_block(shot: Shot) -> str | None:
    """What a frame that is held out belongs to: its block of time, or itself if it is a file; None if it is not."""
    if shot.sha256:
        return shot.sha256 if int(shot.sha256[:8], 16) % 5 == 0 else None
    block = int(shot.time_s // _BLOCK_S)
    return f"{shot.source} block {block}" if block % 5 == 2 else None


def block_draws(blocks: Sequence[str], draws: int = 1000) -> list[npt.NDArray[np.intp]]:
    """For each draw the indices of the frames of as many blocks, drawn with replacement."""
    _, of_frame = np.unique(blocks, return_inverse=True)
    groups = [np.flatnonzero(of_frame == block) for block in range(of_frame.max() + 1)]
    generator = np.random.default_rng(0)
    return [
        np.concatenate([groups[number] for number in generator.integers(0, len(groups), len(groups))])
        for _ in range(draws)
    ]


def pixels_of(looks: Sequence[Look]) -> Any:
    """What the encoder sees of each, (N, H, W, 3) uint8."""
    return np.stack([look.shot.pixels for look in looks])


def parts(preprocessor: Preprocessor, small: Any) -> list[FloatArray]:
    """Batches of preprocessed images."""
    return [preprocessor.normalise_batch(small[at : at + _BATCH]) for at in range(0, len(small), _BATCH)]


def centred(reference: FloatArray, candidate: FloatArray) -> FloatArray:
    """Cosine (N,) of each pair of rows, after the reference's mean is taken off both."""
    centre = reference.mean(axis=0)
    cosine: FloatArray = (unit_rows(reference - centre) * unit_rows(candidate - centre)).sum(axis=1)
    return cosine


def figures_of(reference: FloatArray, candidate: FloatArray, table: FloatArray | None) -> dict[str, float]:
    """How one INT8 graph agrees with FP32."""
    cosine = (unit_rows(reference) * unit_rows(candidate)).sum(axis=1)
    of_centred = centred(reference, candidate)
    figures = {
        "p50": float(np.median(cosine)),
        "p01": float(np.percentile(cosine, 1)),
        "least": float(cosine.min()),
        "centred": float(of_centred.mean()),
        "centred_p01": float(np.percentile(of_centred, 1)),
    }
    if table is not None:
        best = [(unit_rows(rows) @ table.T).argmax(axis=1) for rows in (reference, candidate)]
        figures["agreement"] = float((best[0] == best[1]).mean())
    return figures


def show(result: dict[str, Any]) -> None:
    """A few lines for people."""
    short = f" (of {result['asked']} asked)" if result["count"] < result["asked"] else ""
    print(
        f"{result['count']} images{short}; 95 % of held-out frames within {result['radius'][0]:.3f} of the chosen, "
        f"{result['radius'][1]:.3f} of random ones"
    )
    for name in result["chosen"]:
        drawn = [item[name] for item in result["random"]]
        print(
            f"  {name:12} chosen {result['chosen'][name]:.5f}, random {np.mean(drawn):.5f} "
            f"({min(drawn):.5f} to {max(drawn):.5f})"
        )
    gain, low, high = result["gain"]
    print(f"  centred cosine, chosen less random: {gain:+.5f} (95 % {low:+.5f} to {high:+.5f})", flush=True)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Chosen against random over the size of the set."""
    from matplotlib.figure import Figure

    names = {"centred": "mean centred cosine", "p01": "1st percentile of the cosine", "agreement": "top-1 agreement"}
    shown = [name for name in names if name in results[0]["chosen"]]
    figure = Figure(figsize=(4.2 * len(shown), 3.2), layout="constrained")
    counts = [result["count"] for result in results]
    for panel, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        drawn = [[item[name] for item in result["random"]] for result in results]
        panel.plot(counts, [np.mean(values) for values in drawn], "s--", color="#D55E00", label="random, mean and each")
        for count, values in zip(counts, drawn, strict=True):
            panel.plot([count] * len(values), values, "_", color="#D55E00", ms=10, alpha=0.7)
        panel.plot(counts, [result["chosen"][name] for result in results], "o-", color="#0072B2", label="chosen")
        panel.set_xscale("log", base=2)
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.minorticks_off()
        panel.set_xlabel("calibration images")
        panel.set_title(f"{names[name]}, INT8 to FP32", fontsize=10)
        panel.grid(alpha=0.3)
        panel.ticklabel_format(axis="y", useOffset=False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
