"""What the training tests start in processes of their own, with tiny networks of the true classes.

`python tests/train_runs.py kill FOLDER`: both stages, each killed by SIGKILL while it writes its second checkpoint.
`accelerate launch ... tests/train_runs.py pair FOLDER`: both stages, four steps.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIP = 0.005
sys.path.insert(0, str(ROOT))


def configs(folder, batch_factor: int = 1, **loop):
    """The debug configurations of both stages on a shared pool, small enough for many runs."""
    from train.config import Stage1Config, Stage2Config, load

    def changed(kind, name, *changes):
        cfg = load(kind, ROOT / f"train/configs/{name}_debug.yaml", [f"pool.folder={folder}/pool", *changes])
        optimizer = replace(cfg.optimizer, warmup=2, name="sgd", grad_clip=CLIP)
        settings = {"log_every": 1, "save_every": 2, "sample_every": 0, "keep": 2, **loop}
        return replace(cfg, optimizer=optimizer, loop=replace(cfg.loop, **settings))

    one = changed(Stage1Config, "stage1", f"output={folder}/one", "prompts.strength_dropout=0.3", "grounded_share=0.5")
    phases = [replace(one.phases[0], steps=4, batch=4 * batch_factor, learning_rate=1.0)]
    one = replace(one, phases=phases)
    two = changed(Stage2Config, "stage2", f"output={folder}/two")
    return one, replace(two, steps=4, batch=2 * batch_factor, learning_rate=0.1)


def kill(folder: str) -> None:
    """Both stages in two processes that share one start; each ends itself as `kill -9` would."""
    from train import stage1, stage2

    one, two = configs(folder)
    child = os.fork()
    rename = os.rename

    def rename_or_die(source, target):
        if Path(target).name == "step_00000004":
            if child:
                os.waitpid(child, 0)
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.rename = rename_or_die
    if child:
        stage2.run(two)
    else:
        stage1.run(one)


def pair(folder: str) -> None:
    """Both stages on as many processes as accelerate started."""
    from train import stage1, stage2

    one, two = configs(folder)
    stage1.run(one)
    stage2.run(two)


if __name__ == "__main__":
    {"kill": kill, "pair": pair}[sys.argv[1]](sys.argv[2])
