"""One of several processes with two devices each that take the steps of ``parallel_steps`` together.

python one_of_several.py COORDINATOR PROCESSES PROCESS OUT.pickle
"""

import pickle
import sys
from pathlib import Path

import jax


def main():
    """Joins the others, takes the steps in both ways, whole and in two parts, and writes what came out."""
    coordinator, processes, process, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(coordinator, processes, process)
    import parallel_steps  # makes arrays, which only a process that has joined may do

    part = parallel_steps.BATCH // processes
    share = slice(process * part, (process + 1) * part)
    ways = [(way, count) for way in ("pmap", "sharded") for count in (1, 2)]
    results = {f"{way} {count}": parallel_steps.take_steps(way, count, share) for way, count in ways}
    out.write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main()
