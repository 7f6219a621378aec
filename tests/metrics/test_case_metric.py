"""Mirrors clipseg3d/metrics/case_metric.py."""

import pickle

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torchmetrics.utilities import dim_zero_cat

from clipseg3d.metrics.case_metric import CaseMetric

REGIONS, SCORES = ("WT", "ET"), ("dice", "hd95_mm", "nsd")


class Kept(CaseMetric):
    """Shows what the base class keeps."""

    def __init__(self):
        super().__init__(REGIONS, SCORES)

    def update(self, names, numbers):
        values = torch.tensor(numbers, dtype=torch.float64)
        self.add(names, values[:, None, None].expand(-1, 2, 3) + torch.arange(3) / 10)

    def compute(self):
        return self.table()


def kept(metric):
    table = metric.compute()
    assert table.values.shape == (len(table.case_ids), 2, 3)
    return dict(zip(table.case_ids, table.values[:, 0, 0].tolist(), strict=True))


def test_each_case_once_and_the_first_one_counts():
    metric = Kept()
    metric.update(["b", "a"], [1, 2])
    metric.update(["a"], [9])
    metric.update(["Größe 1", "b", "c"], [3, 8, 4])
    assert list(kept(metric).items()) == [("b", 1), ("a", 2), ("Größe 1", 3), ("c", 4)]
    assert metric.compute().values[0, 1].tolist() == pytest.approx([1, 1.1, 1.2])
    assert (metric.compute().regions, metric.compute().scores) == (REGIONS, SCORES)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_cases_and_after_a_reset():
    metric = Kept()
    assert kept(metric) == {}
    metric.update(["a"], [1])
    metric.reset()
    assert kept(metric) == {}
    metric.update(["b"], [2])
    assert kept(metric) == {"b": 2}


def test_it_can_be_pickled():
    metric = Kept()
    metric.update(["a"], [1])
    assert kept(pickle.loads(pickle.dumps(metric))) == {"a": 1}


def on_two_ranks(*shares):
    """Return what each of two ranks keeps, given the cases of each, with the exchange simulated."""
    metrics = [Kept(), Kept()]
    for metric, share in zip(metrics, shares, strict=True):
        metric.distributed_available_fn = lambda: True
        if share:
            metric.update(share, [ord(name[0]) for name in share])
    states = [
        {state.dtype: dim_zero_cat([state, *rest]) for state, *rest in (m.names, m.values)}
        for m in metrics
    ]
    for metric in metrics:  # each state is known by its type
        metric.dist_sync_fn = lambda state, group: [of_rank[state.dtype] for of_rank in states]
    return [kept(metric) for metric in metrics]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_ranks_exchange_uneven_doubled_and_no_cases():
    first, second = on_two_ranks(["a", "b", "c"], ["c", "dddd"])
    assert first == second == {"a": 97, "b": 98, "c": 99, "dddd": 100}
    first, second = on_two_ranks(["a"], [])
    assert first == second == {"a": 97}


def score_on_one_of_two(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    metric = Kept()
    result = []
    for share in ((["a", "b", "c"], ["c", "dddd"]), (["a"], [])):  # uneven, doubled, none at all
        metric.reset()
        if share[rank]:
            metric.update(share[rank], [ord(name[0]) for name in share[rank]])
        result.append(kept(metric))
    torch.save(result, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(score_on_one_of_two, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        first, second = torch.load(tmp_path / f"{rank}.pt")
        assert first == {"a": 97, "b": 98, "c": 99, "dddd": 100}
        assert second == {"a": 97}
