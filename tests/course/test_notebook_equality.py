"""The cells tagged `equality` prove what they say: they pass with dino_lib as it is, and not with a bug in it.

In each notebook these cells (imports, the reader's definitions, comparisons) run by themselves, in order. Each run is a
process of its own, forked from one that has imported torch and the like but nothing of dino_lib, and finds a copy
of the package in front of the installed one. For a break, one file of the copy is edited.
"""

import ast
import contextlib
import importlib
import io
import json
import linecache
import multiprocessing
import os
import shutil
import sys
import tempfile
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))}

# in every copy: drawing 5,000 pictures would take longer than all the rest, and the cells train on 64 of them
FEWER = ("data/datasets.py", '_shapes(1000, seed=1) if split == "test" else _shapes(4000, seed=0)',
         '_shapes(64, seed=1) if split == "test" else _shapes(64, seed=0)')

# notebook: {what is wrong: (file, old, new, old, new ...)}, where each old text must stand in the file exactly once
BREAKS = {
    "01": {
        "solarize from 64 up": ("augment.py", "(0.1, 2.0), 128, 0.8", "(0.1, 2.0), 64, 0.8"),
        "the first view is solarized, not the second": (
            "augment.py",
            "blur_p[0], 0.0), (global_size, global_scale, blur_p[1], solarize_p)]",
            "blur_p[0], solarize_p), (global_size, global_scale, blur_p[1], 0.0)]"),
        "local views first": (
            "augment.py",
            "self.views += [(local_size, local_scale, blur_p[2], 0.0)] * n_local",
            "self.views = [(local_size, local_scale, blur_p[2], 0.0)] * n_local + self.views"),
        "local views at the global scale": ("augment.py", "(local_size, local_scale,", "(local_size, global_scale,"),
        "the ratio is not logarithmic": (
            "augment.py",
            "ratio = torch.exp(low + (high - low) * tries[:, 1::2])",
            "ratio = math.exp(low) + (math.exp(high) - math.exp(low)) * tries[:, 1::2]"),
        "shrinking skips pixels": ("augment.py", 'mode="bicubic", antialias=True', 'mode="bicubic", antialias=False'),
        "a crop is wider than its box": ("augment.py", "left : left + w]", "left : left + w + 2]"),
        "no flip": ("augment.py", "draws[:, 2] < 0.5", "draws[:, 2] < 0"),
        "the same views in every epoch": ("augment.py", "(epoch << 40) + int(i)", "int(i)"),
        "the same views for every seed": ("augment.py", "key=[seed, (epoch", "key=[0, (epoch"),
    },
    "02": {
        "the feature is the last patch": (
            "backbone.py", "self._fc_norm(tokens[:, 0])", "self._fc_norm(tokens[:, -1])"),
        "the grid is transposed": (
            "backbone.py", "return patches.unflatten(1, grid)", "return patches.unflatten(1, grid).transpose(1, 2)"),
        "no L2 normalisation": ("head.py", "z = F.normalize(z.float(), dim=-1, eps=1e-12)", "z = z.float()"),
        "no weight norm": (
            "head.py", "torch._weight_norm(self.directions, self.gain[:, None], 0)", "self.directions"),
        "the length of a direction counts as a constant": (
            "head.py", "torch._weight_norm(self.directions, self.gain[:, None], 0)",
            "self.directions / self.directions.detach().norm(dim=-1, keepdim=True)"),
        "the gains are trained": ("head.py", "requires_grad=not norm_last_layer", "requires_grad=True"),
        "GELU after the bottleneck": ("head.py", "if i < n_layers - 1:", "if True:"),
        "torch's own initialisation": ("head.py", "nn.init.trunc_normal_(module.weight, std=0.02)", "pass"),
        "the original head's rows have any length": (
            "head.py", "return F.normalize(z.float(), dim=-1, eps=1e-12)", "return z.float()"),
        "views and images are mixed up": (
            "head.py", "logits.unflatten(0, (len(views), -1))",
            "logits.unflatten(0, (-1, len(views))).transpose(0, 1)"),
    },
    "03": {
        "the center is not subtracted": ("loss.py", "(teacher.float() - self.center)", "teacher.float()"),
        "the temperatures are swapped": (
            "loss.py",
            "apply(student, q, self.student_temp)", "apply(student, q, teacher_temp)",
            "q = self.teacher_probs(teacher, teacher_temp)", "q = self.teacher_probs(teacher, self.student_temp)"),
        "a view predicts itself too": (
            "loss.py",
            "torch.stack([q[1], q[0], q.sum(0)])", "q.sum(0).expand(3, -1, -1)",
            "rows.append((1 if v < 2 else 2)", "rows.append(2", "p.mul_(1 if v < 2 else 2)", "p.mul_(2)"),
        "a global view predicts itself alone": ("loss.py", "[q[1], q[0], q.sum(0)]", "[q[0], q[1], q.sum(0)]"),
        "the gradient forgets the targets": ("loss.py", ".sub_(targets[min(v, 2)])", ""),
        "the gradient forgets the temperature": (
            "loss.py", "grad_rows[v, :, None] / ctx.student_temp", "grad_rows[v, :, None]"),
        "summed over the batch": ("loss.py", "rows.mean(1).sum()", "rows.sum()"),
        "summed over the pairs": ("loss.py", " / (2 * (n_views - 1))", ""),
        "the center moves before the loss": (
            "loss.py",
            "        q = self.teacher_probs(teacher, teacher_temp)",
            "        self.update_center(teacher)\n        q = self.teacher_probs(teacher, teacher_temp)",
            "if self.training and update_center:", "if False:"),
        "the center's momentum is reversed": ("loss.py", "1 - self.center_momentum)", "self.center_momentum)"),
        "the gradient forgets the teacher": ("loss.py", ".sub_(targets[min(v, 2)]).mul_(", ".mul_("),
        "the teacher gets a gradient": (
            "loss.py", "@torch.no_grad()\n    def teacher_probs", "def teacher_probs",
            "return gradient, None, None", "return gradient, gradient[:2], None"),
        "another default temperature": ("loss.py", "student_temp=0.1, center", "student_temp=0.2, center"),
    },
    "04": {
        "the average is reversed": ("teacher.py", "foreach_lerp_(t, s, 1 - momentum)", "foreach_lerp_(t, s, momentum)"),
        "the student follows the teacher": (
            "teacher.py", "foreach_lerp_(t, s, 1 - momentum)", "foreach_lerp_(s, t, momentum)"),
        "buffers are averaged": (
            "teacher.py",
            "t, s = list(teacher.parameters()), list(student.parameters())",
            "t, s = [[x for x in m.state_dict().values() if x.is_floating_point()] for m in (teacher, student)]"),
        "the teacher is the student": ("teacher.py", "copy.deepcopy(student)", "copy.copy(student)"),
        "the teacher has a gradient": ("teacher.py", ".requires_grad_(False)", ""),
        "the teacher keeps its drop path": ("teacher.py", "module.drop_prob = 0.0", "pass"),
        "the teacher is in eval mode": ("teacher.py", ".requires_grad_(False)", ".requires_grad_(False).eval()"),
        "the cosine ends one step early": ("schedules.py", "np.arange(n) / max(n, 1)", "np.arange(n) / max(n - 1, 1)"),
        "the warm-up stops short": (
            "schedules.py",
            "np.linspace(start, base, warmup_steps)", "np.linspace(start, base, warmup_steps, endpoint=False)"),
        "the teacher follows before the student's step": (
            "run/trainer.py",
            '            ema_update(self.teacher, self.student, now["momentum"])\n', "",
            "            self.scaler.step(self.optimizer)\n",
            '            ema_update(self.teacher, self.student, now["momentum"])\n'
            "            self.scaler.step(self.optimizer)\n"),
        "the center moves before the loss": (
            "run/trainer.py",
            "            self.loss.update_center(torch.stack(rows))\n", "",
            "                loss = self.loss(predictions",
            "                self.loss.update_center(targets)\n                loss = self.loss(predictions"),
        "the gradient is not clipped": ("run/trainer.py", "c.clip_grad or math.inf", "math.inf"),
        "weight decay on biases": (
            "run/trainer.py", '(now["weight_decay"], 0.0)', '(now["weight_decay"], now["weight_decay"])'),
    },
    "05": {
        "the cosine ends one step early": ("schedules.py", "np.arange(n) / max(n, 1)", "np.arange(n) / max(n - 1, 1)"),
        "the momentum falls": (
            "run/build.py",
            "cosine_schedule(c.momentum, c.momentum_end, total)", "cosine_schedule(c.momentum_end, c.momentum, total)"),
        "weight decay on biases": (
            "run/build.py", "if p.ndim > 1]}", "if p.ndim > 0]}", "if p.ndim <= 1]", "if p.ndim <= 0]"),
        "no weight decay": ("run/trainer.py", '(now["weight_decay"], 0.0)', "(0.0, 0.0)"),
        "the center is not subtracted": ("loss.py", "(teacher.float() - self.center)", "teacher.float()"),
        "the teacher's temperature stands still": (
            "run/trainer.py", 'self.loss(predictions, targets, now["teacher_temp"]',
            "self.loss(predictions, targets, c.warmup_teacher_temp"),
        "the teacher sees local views": (
            "run/trainer.py", "self.teacher.features(part[:2])", "self.teacher.features(part[2:4])"),
        "the center is forgotten when a run resumes": ("run/folder.py", '"teacher", "loss", "opt', '"teacher", "opt'),
    },
    "06": {
        "no division by the root": ("measure/attention.py", " / q.shape[-1] ** 0.5 + bias)", " + bias)"),
        "queries and keys are not normalised": (
            "measure/attention.py", "q, k = attn.q_norm(q), attn.k_norm(k)", "q, k = q, k"),
        "the first patch's row, not the CLS token's": (
            "measure/attention.py", "_row(model, images, layer, lambda grid: 0)", "_row(model, images, layer, lambda grid: 1)"),
        "prefix tokens in the map, patches out of it": (
            "measure/attention.py", "rows[:, :, 0, -grid[0] * grid[1] :]", "rows[:, :, 0, : grid[0] * grid[1]]"),
        "the map is made to sum to 1": (
            "measure/attention.py", "_patches(_softmax(*seen, token(grid)), grid)",
            "F.normalize(_patches(_softmax(*seen, token(grid)), grid), p=1, dim=(-2, -1))"),
        "always the last block": ("measure/attention.py", "_look(model, images, [layer])\n    return _patches",
                                  "_look(model, images, [-1])\n    return _patches"),
        "the keys for the values": ("measure/attention.py", "return q.float(), k.float(), v.float()",
                                    "return q.float(), k.float(), k.float()"),
        "the mask takes the smallest first": ("measure/attention.py", "descending=True, stable=True", "stable=True"),
        "the mask stops short of the share": (
            "measure/attention.py", "inside = before < keep", "inside = before + mass < keep"),
        "the mass is not divided by its sum": ("measure/attention.py", " * mass.sum(-1, keepdim=True)", ""),
        "the mask is enlarged upside down": (
            "measure/attention.py", "maps[..., rows[:, None], cols]", "maps[..., rows.flip(0)[:, None], cols]"),
        "the mean head counts": ("measure/evaluate.py", "_iou(masks, truth).amax(1)", "_iou(masks, truth).mean(1)"),
        "the union is the object alone": ("measure/evaluate.py", "(masks | truth).sum((2, 3))",
                                          "truth.expand_as(masks).sum((2, 3))"),
    },
}


def equality_cells(notebook):
    """(id, source) of the tagged cells of a notebook, in order."""
    cells = json.loads(NOTEBOOKS[notebook].read_text(encoding="utf-8"))["cells"]
    return [(cell["id"], "".join(cell["source"])) for cell in cells if "equality" in cell["metadata"].get("tags", [])]


def copy_library(folder, *edits):
    """A copy of dino_lib in the folder, with edits (file, old, new, old, new ...)."""
    package = folder / "dino_lib"
    shutil.copytree(ROOT / "dino_lib", package, ignore=shutil.ignore_patterns("*.jpg"))
    for file, *texts in edits:
        path = package / file
        source = path.read_text(encoding="utf-8")
        for old, new in zip(texts[::2], texts[1::2], strict=True):
            found = source.count(old)
            assert found == 1, f"dino_lib/{file} holds this text {found} times, not once; write the break anew:\n{old}"
            source = source.replace(old, new)
        path.write_text(source, encoding="utf-8")
        for compiled in package.glob(f"__pycache__/{path.stem}.*"):  # of the file as it was
            compiled.unlink()


def import_heavy():
    """Import what is slow, and drop dino_lib again, so that each fork imports the copy that it is given."""
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", MPLBACKEND="Agg")  # all of it runs on one core
    sys.path.insert(0, str(ROOT))
    for name in ("dino_lib.course.checks", "dino_lib.look.plots", "dino_lib.run.train",
                 "torch._dynamo"):  # AdamW takes the last one
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] == "dino_lib"]:
        del sys.modules[name]


def run_in_fork(cells, folder):
    """What `run_cells` returns in a process of its own; EOFError if that dies, TimeoutError if it does not end."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(run_cells(cells, folder)))
    child.start()
    sender.close()
    try:
        if not receiver.poll(120):
            raise TimeoutError("the cells did not end within 120 seconds")
        return receiver.recv()
    finally:
        child.kill()
        child.join()


def run_cells(cells, folder):
    """None if all cells pass, else (the cell's id, whether a comparison of the cell failed, the traceback)."""
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    library = importlib.import_module("dino_lib").__file__
    if not Path(library).is_relative_to(folder):
        raise ImportError(f"the cells would see {library}, not the copy in {folder}")
    namespace = {"__name__": "__main__"}
    for cell, source in cells:
        file = f"<cell {cell}>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)  # shown in the traceback
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(source, file, "exec"), namespace)
        except BaseException as error:  # notebook 05 also raises KeyboardInterrupt
            raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
            by_comparison = raised_in == file or "testing" in Path(raised_in).parts  # torch.testing, numpy.testing
            return cell, isinstance(error, AssertionError) and by_comparison, traceback.format_exc()
    return None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The function that runs a notebook's tagged cells with these edits of dino_lib, see `run_cells`."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=import_heavy) as nursery:

        def run(notebook, *edits):
            folder = tmp_path_factory.mktemp("library")
            copy_library(folder, FEWER, *edits)
            return nursery.submit(run_in_fork, equality_cells(notebook), folder).result()

        yield run


def test_every_notebook_has_breaks():
    assert NOTEBOOKS.keys() == BREAKS.keys()


@pytest.mark.parametrize("notebook", BREAKS)
def test_tagged_cells_compare(notebook):
    statements = [statement for _, source in equality_cells(notebook) for statement in ast.parse(source).body
                  if not isinstance(statement, ast.FunctionDef | ast.ClassDef)]
    assert any(isinstance(node, ast.Assert) or getattr(node, "attr", "").startswith("assert_")
               for statement in statements for node in ast.walk(statement))


@pytest.mark.parametrize("notebook", BREAKS)
def test_tagged_cells_pass_by_themselves(notebook, run):
    result = run(notebook)
    assert result is None, f"cell {result[0]}:\n{result[2]}"


@pytest.mark.parametrize(("notebook", "wrong"), [(n, wrong) for n in BREAKS for wrong in BREAKS[n]])
def test_break_is_caught(notebook, wrong, run):
    result = run(notebook, BREAKS[notebook][wrong])
    assert result is not None, f"dino_lib is broken ({wrong}), and no tagged cell noticed"
    cell, by_comparison, error = result
    print(f"caught by {notebook} {cell}")
    assert by_comparison, f"dino_lib is broken ({wrong}); cell {cell} was to fail in a comparison, not so:\n{error}"
