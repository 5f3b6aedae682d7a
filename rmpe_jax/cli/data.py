"""``rmpe data``: list, prepare and show."""

import argparse
from typing import Any

from rmpe_jax.cli.options import add_workers, complain, number


def add_data(commands: Any) -> None:
    """Adds the command ``data``."""
    data = commands.add_parser("data", help="prepare data sets, and look at them")
    verbs = data.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="the data sets, and which official files each is read from")
    listing.set_defaults(run=_data_list)
    prepare = verbs.add_parser("prepare", help="write a data set as array_record files, and check them")
    prepare.add_argument("name", metavar="NAME", help="a data set; see `rmpe data list`")
    prepare.add_argument("--from", dest="source", metavar="DIR", help="folder of the official files")
    prepare.add_argument(
        "--to",
        dest="target",
        default="datasets",
        metavar="DIR",
        help="where prepared sets are kept (default: %(default)s)",
    )
    prepare.add_argument(
        "--split", action="append", default=[], metavar="NAME", dest="splits", help="only this split; may be repeated"
    )
    add_workers(prepare)
    prepare.set_defaults(run=_data_prepare)
    show = verbs.add_parser("show", help="draw samples with their labels on one sheet")
    show.add_argument("name", metavar="NAME", help="a data set; see `rmpe data list`")
    show.add_argument("--data", default=".", metavar="DIR", help="official files, or where the prepared set is")
    show.add_argument("--split", metavar="NAME", help="which (default: the first that is there)")
    show.add_argument("--count", type=number(int, 1), default=12, metavar="N", help="pictures (default: %(default)s)")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice (default: %(default)s)")
    show.add_argument("--out", default="sheet.png", metavar="FILE", help="the sheet (default: %(default)s)")
    show.set_defaults(run=_data_show)


def _data_list(options: argparse.Namespace) -> int:
    from rmpe_jax.browse import sets_table

    print(sets_table())
    return 0


def _data_prepare(options: argparse.Namespace) -> int:
    from rmpe_jax.data.prepare import prepare_data

    splits = tuple(options.splits)
    place = prepare_data(
        options.name, options.source, options.target, splits=splits, workers=options.workers, progress=True
    )
    print(f"prepared: {place}")
    return 0


def _data_show(options: argparse.Namespace) -> int:
    from rmpe_jax.browse import labels_sheet
    from rmpe_jax.data.images import write_image

    sheet, line, problems = labels_sheet(
        options.name, options.data, split=options.split, count=options.count, seed=options.seed
    )
    write_image(options.out, sheet)
    for problem in problems:
        complain(problem)
    print(f"{line}: {options.out}")
    return 1 if problems else 0
