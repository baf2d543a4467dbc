import numpy as np

from mvl_dist.sharing import share_by_size


def test_cases_are_shared_out_by_size() -> None:
    sizes = {"huge": 90, "a": 30, "b": 30, "c": 30, "tiny": 1}
    shares = [share_by_size(list(sizes), sizes, rank, 2) for rank in range(2)]
    assert shares == [["huge", "tiny"], ["a", "b", "c"]]
    cases = {
        f"case_{n}": int(size)
        for n, size in enumerate(np.random.default_rng(0).pareto(1, 48) * 100 + 1)
    }
    parts = [share_by_size(list(cases), cases, rank, 5) for rank in range(5)]
    assert sorted(case for part in parts for case in part) == sorted(cases)
    loads = [sum(cases[case] for case in part) for part in parts]
    # Greedy by size stays within 4/3 of the best (Graham 1969), which no share undercuts.
    assert max(loads) <= 4 / 3 * max(sum(cases.values()) / 5, max(cases.values()))
    assert share_by_size(["a"], {"a": 1}, 1, 2) == []
