"""Imagenette as two small archives: `python benchmarks/pack_imagenette.py data/imagenette2-160
data/imagenette128`.

Of each photograph the middle square at 128 px, as a store would see it, saved as JPEG. part-1.tar
and part-2.tar, under 64 MiB each, hold half of train/CLASS and val/CLASS each; unpacked in one
place they are a folder that `--dataset` takes.
"""

import argparse
import io
import tarfile
from pathlib import Path

from dino_lib.data.images import read_image
from dino_lib.data.transforms import middle_square

MOST = 64 * 2**20


def pack(source, out, size, quality):
    """Writes the archives, every other photograph into the second; returns their sizes in bytes.

    ValueError where one is too large.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = [path for part in ("train", "val") for path in sorted(source.glob(f"{part}/*/*.JPEG"))]
    if not paths:
        raise FileNotFoundError(f"no photographs in {source}, train/CLASS and val/CLASS: unpack "
                                "imagenette2-160.tgz, and give its folder")  # fmt: skip
    sizes = []
    for number in range(2):
        archive = out / f"part-{number + 1}.tar"
        with tarfile.open(archive, "w") as tar:
            for path in paths[number::2]:
                packed = io.BytesIO()
                middle_square(read_image(path), size).save(packed, "JPEG", quality=quality)
                entry = tarfile.TarInfo(f"{path.relative_to(source).with_suffix('.jpg')}")
                entry.size = packed.tell()
                tar.addfile(entry, io.BytesIO(packed.getvalue()))
        sizes.append(archive.stat().st_size)
        print(f"{archive}: {len(paths[number::2])} photographs, {sizes[-1] / 2**20:.1f} MiB")
        if sizes[-1] > MOST:
            raise ValueError(f"{archive} is larger than 64 MiB: take --quality below {quality}")
    return sizes


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="the folder that holds train and val")
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--quality", type=int, default=85, help="of the JPEGs")
    args = parser.parse_args(argv)
    pack(args.source, args.out, args.size, args.quality)


if __name__ == "__main__":
    main()
