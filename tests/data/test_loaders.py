"""The views of a step: from the store and from worker processes, the same in whatever batch, worker
or epoch order.
"""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from dino_lib.augment import MultiCrop
from dino_lib.data import loaders
from dino_lib.data.batch_views import BatchMultiCrop, view_uniforms
from dino_lib.data.loaders import StoreViews, WorkerViews, epoch_order, share_of_workers
from dino_lib.measure.probes import spread
from dino_lib.run.build import multicrop_settings, open_views

CPU = torch.device("cpu")


def items(pictures):
    """A dataset of the reader's own: PIL images and labels in a plain list."""
    return [pictures[i] for i in range(len(pictures))]


def opened(config, images, **changes):
    return open_views(dataclasses.replace(config, **changes), images, CPU)


def all_views(views, epoch, batches):
    """One tensor a view, the batches joined."""
    return [
        torch.cat(parts)
        for parts in zip(*views.batches(epoch, [np.array(b) for b in batches]), strict=True)
    ]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(params=[24, None], ids=["store", "workers"])
def config(request, tiny):
    return dataclasses.replace(tiny, store_size=request.param)


def test_a_store_size_chooses_the_store(tiny, pictures):
    assert isinstance(opened(tiny, items(pictures)), StoreViews)
    assert isinstance(opened(tiny, items(pictures), store_size=None), WorkerViews)


def test_views_are_globals_then_locals_of_the_configs_sizes(config, pictures):
    views = opened(config, items(pictures), n_local=3)
    assert len(views) == 32
    (batch,) = views.batches(0, [np.arange(5)])
    assert [tuple(view.shape) for view in batch] == [(5, 3, 24, 24)] * 2 + [(5, 3, 12, 12)] * 3
    assert all(view.dtype == torch.float32 for view in batch)


def test_grey_images_have_one_channel(config, pictures):
    (batch,) = opened(config, items(pictures), mean=(0.5,), std=(0.25,)).batches(0, [np.arange(4)])
    assert [tuple(view.shape) for view in batch] == [(4, 1, 24, 24)] * 2 + [(4, 1, 12, 12)] * 2


def test_views_do_not_depend_on_the_batch(config, pictures):
    views = opened(config, items(pictures))
    whole = all_views(views, 1, [[3, 1, 4, 15, 9, 26]])
    assert same(whole, all_views(views, 1, [[3, 1], [4, 15, 9], [26]]))
    assert same([view[[5, 0]] for view in whole], all_views(views, 1, [[26, 3]]))


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"epoch": 2}, {"index": 2}], ids=["seed", "epoch", "index"]
)
def test_views_depend_on_seed_epoch_and_index(config, pictures, change):
    one_picture = [pictures[0]] * 32  # so that the index alone can tell the views apart
    a = all_views(opened(config, one_picture), 1, [[1]])
    b = all_views(
        opened(config, one_picture, seed=change.get("seed", config.seed)),
        change.get("epoch", 1),
        [[change.get("index", 1)]],
    )
    assert not any(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_views_do_not_depend_on_the_number_of_workers(tiny, pictures):
    batches = [[5, 6, 7], [0, 31, 2], [8, 9, 10]]
    in_process, by_workers = (
        all_views(opened(tiny, items(pictures), store_size=None, num_workers=n), 1, batches)
        for n in (0, 2)
    )
    assert same(in_process, by_workers)


def test_the_configs_recipe_reaches_the_views(config):
    """Without any colour operation a plain picture stays what it is, so a change of each setting
    shows.
    """
    plain = dataclasses.replace(
        config,
        color_jitter=(0.0, 0.0, 0.0, 0.0),
        gray_p=0.0,
        blur_p=(0.0, 0.0, 0.0),
        solarize_p=0.0,
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.25, 0.2),
    )
    red = [Image.new("RGB", (24, 24), (255, 0, 51))] * 32
    (batch,) = opened(plain, red).batches(0, [np.arange(32)])
    expected = torch.tensor([(1.0 - 0.1) / 0.5, (0.0 - 0.2) / 0.25, (0.2 - 0.3) / 0.2])[
        :, None, None
    ]
    for view in batch:
        torch.testing.assert_close(view, expected.expand_as(view), atol=1e-5, rtol=0)
    (batch,) = opened(dataclasses.replace(plain, gray_p=1.0), red).batches(0, [np.arange(4)])
    for view in batch:
        rgb = (
            view * torch.tensor(plain.std)[:, None, None] + torch.tensor(plain.mean)[:, None, None]
        )
        assert rgb.std(1).max() < 1e-2
    (batch,) = opened(dataclasses.replace(plain, solarize_p=1.0), red).batches(0, [np.arange(4)])
    changed = [(view - expected).abs().max() > 1 for view in batch]
    assert changed == [False, True, False, False]  # global view 2 alone


def test_multicrop_settings_fit_both_versions_and_hold_the_configs_values(tiny):
    settings = multicrop_settings(
        dataclasses.replace(tiny, local_scale=(0.2, 0.3), blur_p=(0.1, 0.2, 0.3))
    )
    for version in (MultiCrop, BatchMultiCrop):
        assert version(**settings).views == [
            (24, (0.4, 1.0), 0.1, 0.0),
            (24, (0.4, 1.0), 0.2, tiny.solarize_p),
            (12, (0.2, 0.3), 0.3, 0.0),
            (12, (0.2, 0.3), 0.3, 0.0),
        ]


def test_the_store_makes_the_views_of_its_own_uniforms(tiny, pictures):
    views, multicrop = opened(tiny, pictures), BatchMultiCrop(**multicrop_settings(tiny))
    expected = multicrop(
        pictures.images[[2, 7]],
        uniforms=view_uniforms(tiny.seed, 3, np.array([2, 7]), multicrop.n_uniforms),
    )
    assert same(all_views(views, 3, [[2, 7]]), expected)


def test_epoch_order_is_a_permutation_of_its_own_for_each_seed_and_epoch():
    orders = [epoch_order(seed, epoch, 50).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(0, 1, 50).tolist() == orders[1]


@pytest.mark.parametrize("limit", [5, 32, 100, None])
def test_limit_takes_images_from_the_whole_dataset(config, pictures, limit):
    limited, chosen = opened(config, items(pictures), limit=limit), spread(32, limit or 32).tolist()
    assert len(limited) == len(chosen) == min(limit or 32, 32)
    expected = opened(config, [items(pictures)[i] for i in chosen])
    assert same(all_views(limited, 0, [[4]]), all_views(expected, 0, [[4]]))


def test_limit_of_a_folder_takes_all_its_classes(tiny, tmp_path):
    for i in range(60):  # the red ones first
        folder = tmp_path / "photos" / "abc"[i // 20]
        folder.mkdir(parents=True, exist_ok=True)
        colour = [(200, 0, 0), (0, 200, 0), (0, 0, 200)][i // 20]
        Image.new("RGB", (24, 24), colour).save(folder / f"{i}.png")
    config = dataclasses.replace(tiny, dataset=str(tmp_path / "photos"), limit=15)
    images = open_views(config, None, CPU).images
    assert sorted(set(images.float().mean((2, 3)).argmax(1).tolist())) == [0, 1, 2]


def test_limit_keeps_what_needs_no_decoding(tiny, pictures, capsys):
    chosen = pictures.images[spread(32, 5)]
    assert torch.equal(opened(tiny, pictures, limit=5).images, chosen)
    assert "decoding" not in capsys.readouterr().out


def test_unreadable_images_are_replaced_in_batches_of_full_size_and_named(
    config, pictures, tmp_path
):
    for i in range(8):
        pictures[i][0].save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "7.png").write_bytes((tmp_path / "6.png").read_bytes()[:200])
    views = open_views(dataclasses.replace(config, dataset=str(tmp_path)), None, CPU)
    used = 6 if config.store_size else 8  # the store knows its images, workers find them as they go
    assert len(views) == used
    batches = list(views.batches(0, np.arange(used).reshape(2, -1)))
    assert [len(view) for batch in batches for view in batch] == [used // 2] * 8
    report = views.report()
    assert (
        report.startswith("2 of 8 images could not be read")
        and "2.png (" in report
        and "7.png (" in report
    )


def test_workers_tell_the_main_process_what_they_could_not_read(tiny, pictures, tmp_path):
    for i in range(4):
        pictures[i][0].save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"not an image")
    views = opened(tiny, None, dataset=str(tmp_path), store_size=None, num_workers=1)
    list(views.batches(0, [np.array([0, 1]), np.array([2, 3])]))
    assert "1 of 4 images" in views.report() and "1.png" in views.report()


def test_workers_leave_a_core_and_are_at_most_16(monkeypatch):
    for cores, workers in [(1, 1), (2, 1), (8, 7), (64, 16)]:
        monkeypatch.setattr(
            "os.sched_getaffinity", lambda pid, cores=cores: range(cores), raising=False
        )
        assert share_of_workers(None) == workers
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert share_of_workers(None) == 4


@pytest.mark.parametrize("asked, share", [(0, 0), (1, 1), (16, 4), (18, 5), (None, 7)])
def test_the_processes_of_a_machine_share_its_workers(monkeypatch, asked, share):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(32), raising=False)
    assert share_of_workers(asked) == share


def test_workers_are_chosen_from_the_machine_unless_given(tiny, pictures, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(4), raising=False)
    assert opened(tiny, items(pictures), store_size=None, num_workers=None).num_workers == 3
    assert opened(tiny, items(pictures), store_size=None, num_workers=0).num_workers == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_made_of_pieces_in_order(tiny, pictures, workers):
    views = opened(tiny, items(pictures), store_size=None, num_workers=workers)
    order = np.random.default_rng(0).permutation(32)
    whole = all_views(views, 0, [order[:21], order[21:]])
    one_by_one = all_views(views, 0, [[i] for i in order])
    views.close()
    assert len(whole[0]) == 32 and same(whole, one_by_one)


def test_workers_are_handed_small_pieces_of_a_batch(tiny, pictures, monkeypatch):
    """So that the shared memory that they fill does not grow with the batch."""
    views, largest = opened(tiny, items(pictures), store_size=None, num_workers=1), []
    loader = loaders.DataLoader

    def spy(*args, batch_sampler, **options):
        largest.append(max(len(piece) for piece in batch_sampler))
        return loader(*args, batch_sampler=batch_sampler, **options)

    monkeypatch.setattr(loaders, "DataLoader", spy)
    (batch,) = views.batches(0, [np.arange(32)])
    views.close()
    assert largest == [loaders.PIECE] and len(batch[0]) == 32


def test_workers_stay_from_epoch_to_epoch(tiny, pictures):
    views = opened(tiny, items(pictures), store_size=None, num_workers=2)
    seen = []
    for epoch in range(2):
        first = all_views(views, epoch, [[1, 2], [3]])
        seen.append({child.pid for child in torch.multiprocessing.active_children()})
        assert same(
            first, all_views(opened(tiny, items(pictures), store_size=None), epoch, [[1, 2], [3]])
        )
    assert seen[0] == seen[1] and len(seen[0]) == 2
    views.close()
    assert not torch.multiprocessing.active_children()
    assert len(all_views(views, 0, [[1]])) == 4  # and it can begin again
    views.close()


def test_views_leave_the_callers_generator_alone(config, pictures):
    state = torch.get_rng_state()
    list(opened(config, items(pictures)).batches(0, [np.arange(5)]))
    assert torch.equal(torch.get_rng_state(), state)


def test_only_pinned_memory_is_copied_beside_the_computation(tiny, pictures, monkeypatch):
    """Elsewhere the source may be gone before it is read."""
    device, asked, to = torch.device("meta"), [], torch.Tensor.to

    def spy(tensor, *args, **options):
        asked.append((args, options))
        return to(tensor, *args, **options)

    class AsTheyAre:
        n_uniforms = 1

        def __call__(self, images, uniforms):
            return [images]

    store = StoreViews(pictures.images, AsTheyAre(), seed=0, device=device)
    workers = WorkerViews(
        items(pictures), MultiCrop(24, 12, 2), seed=0, device=device, num_workers=0
    )
    monkeypatch.setattr(torch.Tensor, "to", spy)
    for views in (store, workers):
        asked.clear()
        (batch,) = views.batches(0, [np.arange(3)])
        assert batch[0].device == device and (((device,), {}) in asked)
        assert not any(options.get("non_blocking") for _, options in asked)
