"""A recipe in, a trained two-tower model out: batch → loss → backward → step → log, save, evaluate."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import torch
from rich.console import Console

from edgeclip.documents import encode_json
from edgeclip.errors import TrainingError
from edgeclip.training.checkpoint.checkpoint import save_checkpoint
from edgeclip.training.loop.distributed import bare, distribute, join_world, share_of, whole, whole_weights
from edgeclip.training.loop.grad_cache import forward_backward
from edgeclip.training.loop.lora import apply_to_towers, merged_weights
from edgeclip.training.loop.resume import Running, load_state, restore, save_state
from edgeclip.training.loop.run import Bar, RunFolder, RunLog, Speed
from edgeclip.training.loop.schedule import Average, make_optimizer, warmup_cosine
from edgeclip.training.loop.task import TASKS
from edgeclip.training.recipe import Recipe

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# fp16's loss scale halves at each overflow; below this the gradients themselves are the trouble.
_LEAST_SCALE = 2.0**-14


def train_recipe(
    recipe: Recipe, target: Path, *, console: Console, overwrite: bool = False, resume: bool = False
) -> None:
    """Train and write the run folder ``target`` (see ``RunFolder``); under torchrun with all its processes.

    Raises:
        InputError: ``target`` exists and neither ``overwrite`` nor ``resume`` is given.
        RecipeError: the recipe does not fit the data, the machine, or the state to resume from.
        TrainingError: no usable data, or a loss that is not finite (with the step and the batch's keys).
    """
    settings, scale, log = recipe.optimizer, recipe.scale, recipe.log
    with join_world(scale.device) as world:
        # The folder, and the recipe in full.
        folder = RunFolder(target)
        if world.main:
            folder.prepare(recipe, overwrite=overwrite, resume=resume)
            shown = msgspec.json.format(encode_json(recipe), indent=2).decode()
            console.print(shown, highlight=False, markup=False, soft_wrap=True)
        world.wait()
        batch_size = share_of(settings.batch_size, world, name="optimizer.batch_size")

        # Two towers, the data that they are trained on and the loss that does it.
        torch.manual_seed(recipe.seed)
        task = TASKS[recipe.task](recipe, batch_size=batch_size, world=world)
        if recipe.lora:
            apply_to_towers(task.model, recipe.lora)
        if scale.checkpointing:
            task.model.set_grad_checkpointing(True)
        model = distribute(task.model.to(world.device), world, scale.strategy)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        # Optimizer, average, loss scaling.
        optimizer = make_optimizer(bare(model), recipe.model, settings)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        average = Average(bare(model), settings.ema) if settings.ema else None
        autocast = torch.autocast(world.device.type, _DTYPES[scale.precision], enabled=scale.precision != "fp32")
        scaler = torch.amp.GradScaler(world.device.type, enabled=scale.precision == "fp16")
        run = Running(model, optimizer, scaler, average, task.loader, world)

        # From the start, or from where the last run was saved. Dropout differs between processes, weights do not.
        torch.manual_seed(recipe.seed + world.rank)
        done = 0
        if resume and folder.state.is_file():
            done = restore(load_state(folder.state, recipe, world), run)
            console.print(f"resumed after step {done} from {folder.state}", highlight=False)

        writer = RunLog(target, steps_done=done, tensorboard=log.tensorboard) if world.main else None
        batches, speed, top1 = iter(task.loader), Speed(), math.nan
        with Bar(console, total=settings.steps, done=done, shown=world.main) as bar:
            for step in range(done, settings.steps):
                # Batch.
                batch = next(batches)
                share = warmup_cosine(step, settings)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * share

                # Loss and backward, whole or in chunks.
                model.train()
                optimizer.zero_grad(set_to_none=True)
                loss = forward_backward(
                    model,
                    task.inputs(batch),
                    task.objective(batch),
                    chunk=scale.grad_cache_chunk,
                    scaler=scaler,
                    autocast=autocast,
                )
                value = loss.item()
                scaler.unscale_(optimizer)
                norm = whole(torch.nn.utils.clip_grad_norm_(trained, settings.clip or math.inf)).item()
                if not math.isfinite(value) or not (math.isfinite(norm) or scaler.is_enabled()):
                    what = f"the loss is {value}" if not math.isfinite(value) else f"the gradient's norm is {norm}"
                    raise TrainingError(folder.explain(what, step + 1, world.collect(batch.keys)))

                # Step.
                scaler.step(optimizer)
                scaler.update()
                if scaler.is_enabled() and scaler.get_scale() < _LEAST_SCALE:
                    what = "fp16's gradients overflow at any scale"
                    raise TrainingError(folder.explain(what, step + 1, world.collect(batch.keys)))
                task.after_step()
                if average:
                    average.update(step)

                # Log, evaluate, save.
                speed.add(settings.batch_size)
                last = step + 1 == settings.steps
                if writer and ((step + 1) % log.every == 0 or last):
                    values = {"loss": value, "lr": rates[0] * share, "grad_norm": norm, **task.figures()}
                    now = speed.read()
                    writer.write(step + 1, {**values, "samples_per_s": now})
                    bar.show(step + 1, loss=value, speed=now)
                with speed.pause():
                    if task.zero_shot and (last or (log.eval_every and (step + 1) % log.eval_every == 0)):
                        top1 = task.top1(model, average)
                        if writer:
                            writer.write(step + 1, {"top1": top1})
                            console.print(f"step {step + 1}: loss {value:.4f}, top-1 {top1:.4f}", highlight=False)
                    if last or (log.save_every and (step + 1) % log.save_every == 0):
                        save_state(folder.state, run, step=step + 1, recipe=recipe)
                        weights = whole_weights(model, average.values if average else {})
                        if world.main:
                            if recipe.lora:
                                weights = merged_weights(task.model, weights)
                            results = {"final_loss": value} | ({"top1": top1} if math.isfinite(top1) else {})
                            save_checkpoint(
                                folder.checkpoint,
                                task.model,
                                recipe=recipe,
                                results=results,
                                state=weights,
                                overwrite=True,
                            )
                        world.wait()
        if writer:
            writer.close()
