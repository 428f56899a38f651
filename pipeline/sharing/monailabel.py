"""The MONAI Label app as a folder, for ``monailabel start_server --app``."""

from __future__ import annotations

import shutil
from pathlib import Path

from tumorlens.data.files import whole_folder

_README = """# tumorlens in 3D Slicer

MONAI Label needs NumPy 1 and pydicom 2, tumorlens NumPy 2 and pydicom 3: install MONAI Label into an environment of its
own, and start it there.

    pip install monailabel==0.8.5 'pydicom<3' 'dicomweb-client<0.60'
    monailabel start_server --app . --studies FOLDER --conf tumorlens PATH-OF-THE-TUMORLENS-COMMAND

`--conf classifier FILE`, `--conf segmenter FILE` and `--conf device cpu` are options of `tumorlens run`. For research
and teaching only; tumorlens is not a medical device.
"""


def write_app(folder: Path) -> None:
    """Write the app.

    Args:
        folder: A new folder, for ``main.py`` and ``README.md``.

    Raises:
        InputError: The folder is not new, or may not be written.
    """
    with whole_folder(folder) as part:
        shutil.copyfile(Path(__file__).with_name("label_app.py"), part / "main.py")
        (part / "README.md").write_text(_README, encoding="utf-8")
