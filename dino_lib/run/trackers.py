"""The hook that sends a run's history to TensorBoard or Weights & Biases (extras of the package)."""

import contextlib
import dataclasses


@contextlib.contextmanager
def open_tracker(config):
    """Yields a function of one history record (a dict with "step"); does nothing for None or tracker="none".

    Raises ValueError naming the package to install where it is missing.
    """
    name = config.tracker if config else "none"
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
        elif name == "wandb":
            import wandb
    except ImportError as error:
        raise ValueError(f"tracker={name} needs a package that is not installed: pip install {name}") from error

    if name == "tensorboard":
        with SummaryWriter(config.output_dir) as writer:
            yield lambda record: [writer.add_scalar(k, v, record["step"]) for k, v in record.items() if k != "step"]
    elif name == "wandb":
        with wandb.init(project="dino", dir=config.output_dir, config=dataclasses.asdict(config)) as run:
            yield lambda record: run.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])
    else:
        yield lambda record: None
