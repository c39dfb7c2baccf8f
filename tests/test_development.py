"""The development set: which cells it has, what is counted, and a cell from the dense network to the row."""

import json

import pytest
import torch

from benchmarks import development


def test_three_seeds_hold_every_network_data_set_and_budget_once():
    seeds = [list(development.cells(seed)) for seed in (10, 11, 12)]
    for cells in seeds:
        assert len({(c.family, c.budget) for c in cells}) == len(cells) == 7 * 6
        assert {c.data for c in cells} == set(development.DATA)
    assert len({(c.family, c.data, c.budget) for cells in seeds for c in cells}) == 7 * 6 * 3


def test_regret_is_how_far_a_method_is_behind_the_best_of_a_cell():
    def row(method, accuracy, budget="macs=0.25", seed=10, data="small"):
        return {
            "family": "chain",
            "data": data,
            "budget": budget,
            "seed": seed,
            "method": method,
            "accuracy": accuracy,
        }

    rows = [
        row("a", 60.0), row("b", 58.0),
        row("a", 49.0, "macs=0.02"), row("b", 50.0, "macs=0.02"),
        row("a", 99.0, "volume=0.2"),  # b is not there: no cell of the table
    ]  # fmt: skip
    table = development.table(rows, "budget").splitlines()
    assert table[0] == "2 cells"
    # regret, worst, part of cells within half a point, rank, and by budget
    assert "| a | 0.50 | 1.00 | 50.00 | 1.50 | 1.00 | 0.00 |" in table
    assert "| b | 1.00 | 2.00 | 50.00 | 1.50 | 0.00 | 2.00 |" in table
    more = [row("a", 10.0, seed=11), row("b", 12.0, seed=11)]
    table = development.table([*rows[:2], *more], "seed").splitlines()
    # a is behind by 0 and 2, b by 2 and 0: both by 1 ± 1 in the one place that they share
    assert "| a | 1.00 | 1.00 | 100.00 | 1.50 | 0.00 | 2.00 |" in table


def test_a_cell_is_pruned_to_its_budget_and_fine_tuned(tmp_path, monkeypatch):
    class Task:
        classes, channels = 3, 1
        train = torch.randn(128, 1, 14, 14), torch.arange(128) % 3

        def accuracy(self, network):
            sizes.append(sum(p.numel() for p in network.parameters()))
            return float(len(sizes))

    sizes: list[int] = []
    for name in ("DENSE", "PRUNE", "FINETUNE"):
        monkeypatch.setattr(development, name, 2)
    cell = development.Cell("chain", "small", "params=0.0625", 10)
    dense = development.trained(cell, Task(), tmp_path)
    again = development.trained(cell, Task(), tmp_path)  # from the file
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), again.parameters(), strict=True))
    row = development.run(cell, "uniform", dense, Task())
    cut, whole, small = sizes  # as cut, the dense network, fine-tuned
    assert cut == small <= 0.0625 * whole and (row["cut"], row["dense"], row["accuracy"]) == (1, 2, 3)
    assert row["method"] == "uniform" and row["budget"] == "params=0.0625"


def test_a_report_needs_no_runs(tmp_path, capsys, monkeypatch):
    file = tmp_path / "rows.jsonl"
    cell = {"family": "chain", "data": "small_development", "budget": "macs=0.25", "seed": 10}
    file.write_text(json.dumps({**cell, "method": "a", "accuracy": 1.0}) + "\n")
    monkeypatch.setattr("sys.argv", ["development", "--read", str(file)])
    development.main()
    assert "| a | 0.00 | 0.00 | 100.00 | 1.00 | 0.00 |" in capsys.readouterr().out


def test_every_family_can_be_pruned_to_every_budget():
    import chipnet

    for build in development.FAMILIES.values():
        net = build(num_classes=100, in_channels=1)
        structure = chipnet.Structure(net, torch.zeros(1, 1, 14, 14))
        for budget in development.BUDGETS:
            structure.check(budget)
    with pytest.raises(chipnet.BudgetError):
        structure.check("macs=0.00001")
