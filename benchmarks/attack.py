"""An attack on runs, by hand: kills, Ctrl-C, damaged files, and places where nothing can be written; then a table.

Wanted are equal bits or one clear sentence: 0 tracebacks, 0 lost steps, 0 wrong results. Each case is a line of
outcomes.jsonl, so that an attack that was stopped goes on; the table is made of these lines.

    python benchmarks/attack.py [--kills 1000 --interrupts 20000 --mutations 10000 --places 40] [--only kills ...]
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from attacks.children import prepare
from attacks.interrupts import PROBINGS, Interrupts
from attacks.kills import Kills
from attacks.mutations import Mutations
from attacks.outcomes import Outcomes
from attacks.places import Places

RESULTS = Path(__file__).parent / "results" / "attack"
ATTACKS = ("kills", "interrupts", "mutations", "places")
PLACES = ("full_disk", "read_only", "removed_folder", "two_runs", "clock")


def arguments() -> argparse.Namespace:
    """What the user typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="runs that are killed")
    parser.add_argument("--interrupts", type=int, default=20000, help="SIGINTs, over the three ways of probing")
    parser.add_argument("--mutations", type=int, default=10000, help="damaged files")
    parser.add_argument("--places", type=int, default=40, help="runs on each kind of bad place")
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=ATTACKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of outcomes.jsonl and table.md")
    parser.add_argument("--again", action="store_true", help="forget the outcomes that are there")
    return parser.parse_args()


def main() -> None:
    """Attack, and write the table."""
    args = arguments()
    if args.again:
        (args.results / "outcomes.jsonl").unlink(missing_ok=True)
    outcomes = Outcomes(args.results / "outcomes.jsonl")
    prepare()
    for attack in args.only:
        folder = Path(tempfile.mkdtemp(prefix=f"attack-{attack}-"))
        if attack == "kills" and outcomes.missing("SIGKILL, resumed", args.kills):
            outcomes.run("SIGKILL, resumed", args.kills, Kills(folder, args.seed).case)
        if attack == "interrupts":
            for place, probing in enumerate(PROBINGS):
                count = len(range(place, args.interrupts, len(PROBINGS)))
                interrupts = Interrupts(folder, args.seed, probing)
                outcomes.run(f"SIGINT, {probing}", count, interrupts.case)
                interrupts.sender.close()
        if attack == "mutations" and outcomes.missing("damaged file", args.mutations):
            outcomes.run("damaged file", args.mutations, Mutations(folder, args.seed).case)
        if attack == "places":
            places = Places(folder, args.seed)
            for name in PLACES:
                outcomes.run(name.replace("_", " "), args.places, getattr(places, name))
        bad = [o for o in outcomes.bad() if o.attack != ""]
        if not bad:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"what is bad of {attack} can be looked at in {folder}")
    (args.results / "table.md").write_text(outcomes.table())
    print(outcomes.table())
    raise SystemExit(bool(outcomes.bad()))


if __name__ == "__main__":
    main()
