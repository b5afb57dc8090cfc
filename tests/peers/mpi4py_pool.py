"""Sleeps on the pool of mpi4py, to hold `cnse schedule --simulate` against.

    mpiexec -n 17 PYTHON -m mpi4py.futures tests/peers/mpi4py_pool.py TRACE CHUNK

TRACE has a time in ms a line. Rank 0 deals, the others sleep. Prints the seconds from the first task to the last, less
the start of MPI and of the workers.
"""

import sys
import time

from mpi4py.futures import MPIPoolExecutor


def main():
    with open(sys.argv[1], encoding="ascii") as trace:
        times = [float(line) / 1000 for line in trace]
    with MPIPoolExecutor() as pool:
        pool.bootup(wait=True)
        began = time.monotonic()
        done = sum(1 for _ in pool.map(time.sleep, times, chunksize=int(sys.argv[2]), unordered=True))
        took = time.monotonic() - began
    assert done == len(times), f"{done} of {len(times)} tasks came back"
    print(f"{took:.4f}")


if __name__ == "__main__":
    main()
