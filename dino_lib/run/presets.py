"""Settings that fit together, by name: where a run of one's own starts."""

from dataclasses import replace

from dino_lib.run.config import Config

# A tiny ViT. Its stem is convolutional (`conv_stem`): a linear patch embedding learns next to
# nothing in a few hundred updates.
TINY_VIT = {
    "img_size": 48,
    "patch_size": 6,
    "embed_dim": 128,
    "depth": 2,
    "num_heads": 8,
    "mlp_ratio": 2.0,
}

# minutes on two CPU cores: the embedded dataset
demo = Config(
    dataset="shapes",
    store_size=48,
    backbone="vit_tiny_patch16_224",
    backbone_options=TINY_VIT,
    conv_stem=True,
    drop_path=0.0,
    # views of pictures of 48 pixels
    global_size=36,
    local_size=18,
    n_local=4,
    local_scale=(0.15, 0.5),
    # strong colour jitter, since colour is the easiest cue; little blur, since texture is one too
    color_jitter=(0.4, 0.4, 0.4, 0.08),
    solarize_p=0.0,
    blur_p=(0.1, 0.1, 0.05),
    # a small head; batch norm for a faster start
    out_dim=1024,
    hidden_dim=512,
    bottleneck_dim=128,
    use_bn=True,
    epochs=12,
    # small batches, so that a few minutes have many updates
    batch_size=32,
    lr=1.8e-3,
    min_lr=1e-5,
    warmup_epochs=2,
    # a teacher that follows fast (half-life 34 updates, 138 in the end): the run has only 1,500
    momentum=0.98,
    momentum_end=0.995,
    freeze_last_layer=0.0,
    eval_every=3,
    eval_limit=2000,
    output_dir="runs/demo",
)

# seconds: for tests
smoke = replace(
    demo,
    limit=64,
    backbone_options={**TINY_VIT, "embed_dim": 32, "depth": 1, "num_heads": 2},
    n_local=2,
    out_dim=32,
    hidden_dim=32,
    bottleneck_dim=16,
    epochs=2,
    batch_size=16,
    warmup_epochs=0.5,
    log_every=1,
    eval_limit=60,
    output_dir="runs/smoke",
)

# a minute on one CPU core: icons, and a first look at images of one's own
pocket = replace(
    demo,
    store_size=32,
    backbone_options={
        **TINY_VIT,
        "img_size": 24,
        "patch_size": 4,
        "embed_dim": 64,
        "num_heads": 4,
    },
    global_size=24,
    local_size=12,
    n_local=2,
    out_dim=256,
    hidden_dim=256,
    bottleneck_dim=64,
    epochs=13,
    batch_size=64,
    lr=2.5e-3,
    momentum=0.96,
    momentum_end=0.99,
    output_dir="runs/pocket",
)

# an hour or two on one CPU core: photographs, registers for clean maps. A batch of 64 is small for
# so cold a teacher, so Sinkhorn keeps its prototypes in use, and KoLeo the features apart. The
# teacher `photos` had three times the epochs and a slower teacher
laptop = replace(
    demo,
    dataset="imagenette",
    store_size=96,
    backbone_options={**TINY_VIT, "img_size": 64, "patch_size": 8, "reg_tokens": 4},
    global_size=64,
    local_size=32,
    local_scale=(0.25, 0.6),
    color_jitter=(0.4, 0.4, 0.2, 0.1),
    teacher_temp=0.02,
    warmup_teacher_temp=0.02,
    centering="sinkhorn",
    koleo=0.2,
    epochs=40,
    batch_size=64,
    lr=1.5e-3,
    weight_decay_end=0.1,
    momentum=0.98,
    momentum_end=0.998,
    eval_every=4,
    eval_limit=3000,
    output_dir="runs/laptop",
)

# one GPU: STL-10's 100,000 unlabelled images
gpu = Config(
    dataset="stl10",
    store_size=96,
    backbone="vit_small_patch16_224",
    backbone_options={"img_size": 96, "patch_size": 8},
    global_size=96,
    local_size=48,
    n_local=6,
    local_scale=(0.1, 0.4),
    out_dim=4096,
    epochs=100,
    batch_size=512,
    lr=1e-3,
    momentum=0.996,
    warmup_teacher_temp_epochs=10,
    teacher_temp=0.07,
    eval_every=5,
    save_every=5,
    output_dir="runs/gpu",
)

# a smaller GPU, such as Colab's T4: Imagenette's 9,469 photographs. It has never been run
colab = replace(
    gpu,
    dataset="imagenette",
    store_size=128,
    backbone="vit_tiny_patch16_224",
    backbone_options={"img_size": 96, "patch_size": 8, "num_heads": 6},
    batch_size=128,
    momentum=0.99,
    teacher_temp=0.06,
    output_dir="runs/colab",
)

# an hour on an H100: Imagenette again, with a wider network and eight times the epochs. A design
# that has never been run: as many epochs as the field's benchmarks of this dataset take, a
# convolutional stem because 9,469 photographs are few for a ViT, and registers for clean maps
imagenette = replace(
    gpu,
    dataset="imagenette",
    store_size=128,
    backbone_options={"img_size": 96, "patch_size": 8, "reg_tokens": 4},
    conv_stem=True,
    epochs=800,
    warmup_epochs=20,
    warmup_teacher_temp_epochs=60,
    eval_every=20,
    eval_limit=10_000,  # all of it
    save_every=20,
    output_dir="runs/imagenette",
)

# the from-scratch repository that this course starts from: its settings, all of them constant
original = Config(
    dataset="stl10",
    backbone="vit_base_patch16_224",
    pretrained=True,
    global_size=224,
    local_size=96,
    n_local=2,
    drop_path=0.0,
    head="original",
    out_dim=1000,
    student_temp=0.1,
    teacher_temp=0.04,
    warmup_teacher_temp=0.04,
    epochs=10,
    batch_size=2048,
    accumulate=32,
    lr=5e-4,
    min_lr=5e-4,
    warmup_epochs=0.0,
    weight_decay=0.04,
    weight_decay_end=0.04,
    momentum=0.996,
    momentum_end=0.996,
    clip_grad=0.0,
    freeze_last_layer=0.0,
    num_workers=16,
    save_every=5,
    output_dir="runs/original",
)

PRESETS = {
    "smoke": smoke,
    "pocket": pocket,
    "demo": demo,
    "laptop": laptop,
    "colab": colab,
    "gpu": gpu,
    "imagenette": imagenette,
    "original": original,
}
