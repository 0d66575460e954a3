"""Speech recognition: the telephone prompts of Asterisk, letter by letter.

apt-get install asterisk-core-sounds-en-wav asterisk-core-sounds-en
    or unpack both packages (dpkg-deb -x) into a folder and name it in ASTERISK_SOUNDS
modelmint land speech
modelmint run speech        about ten minutes of one core; expect a character error rate of 0.21

All clips are of one speaker, Allison Smith, in a studio: what is reached here says nothing of
other voices, rooms or telephones. No sentence of the test is in the training rows, but the prompts
share their words.
"""

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from models import transformer
from models.audio import TRANSCRIPTS, Audio, Clip
from models.masking import SpecAugment
from models.mel import LogMel
from models.spec import Budget, Example, Gate, Line, Optimizer, Training
from models.splits import ByGroup
from models.transcription import Transcription

SETTING = "ASTERISK_SOUNDS"
SOUNDS = "usr/share/asterisk/sounds/en_US_f_Allison"
TEXTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
SHARDS = tuple(f"shard-{number}" for number in range(8))


def load(part: str) -> Iterator[tuple[str, bytes]]:
    """An eighth of the clips as a tar, and the transcripts; raises LookupError where they are not.

    Clips are dealt out in the order of their names.
    """
    root = Path(os.environ.get(SETTING, "/"))
    texts, folder = root / TEXTS, root / SOUNDS
    for path in (texts, folder):
        if not path.exists():
            raise LookupError(
                f"{path} is not there: install the Debian packages asterisk-core-sounds-en-wav and"
                f" asterisk-core-sounds-en, or set {SETTING} to a folder both are unpacked in"
            )
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.wav"))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names[SHARDS.index(part) :: len(SHARDS)]:
            content = (folder / name).read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    yield f"{part}.tar", packed.getvalue()
    yield Path(TEXTS).stem, gzip.decompress(texts.read_bytes())


line = Line(
    name="speech",
    title="Telephone prompts, spoken",
    objective=Transcription(target="transcript"),
    data=Audio(
        raw="speech/",
        references={TRANSCRIPTS: Path(TEXTS).stem},
        clip=Clip(rate=8000, longest=20.0),
        mel=LogMel(bands=40),
        split=ByGroup(column="transcript", test=0.2, validation=0.05),
    ),
    model=transformer.Spec(size="base"),
    training=Training(
        epochs=80,
        batch_size=8,
        optimizer=Optimizer(lr=1.5e-3),
        augmentation=SpecAugment(),
        clip=1.0,
        window_mb=256,
    ),
    gate=Gate(floors={"cer": 0.25}, margin=0.05),
    budget=Budget(quality_loss=0.03, size_mb=8.0),
    example=Example(
        slices=SHARDS,
        default=SHARDS,
        load=load,
        source="Asterisk core sounds in English, spoken by Allison Smith, CC BY-SA 3.0",
    ),
)
