"""What is kept of copies that reads fell back past: each once, counted exactly, and in bounds."""

from __future__ import annotations

from storage.copy_faults import CopyFault, CopyFaults, FaultKind


def fault(key: str, kind: FaultKind = FaultKind.DAMAGED, region: str = "a") -> CopyFault:
    return CopyFault(region, key, kind, "why")


def test_a_copy_counts_once_however_often_it_is_met() -> None:
    faults = CopyFaults()
    assert faults.add(fault("k"))
    assert not faults.add(fault("k"))
    assert faults.add(fault("k", region="b"))
    report = faults.report()
    assert [(one.region, one.key) for one in report.faults] == [("a", "k"), ("b", "k")]
    assert report.count("a", FaultKind.DAMAGED) == report.count("b", FaultKind.DAMAGED) == 1


def test_a_worse_fault_takes_the_place_of_a_lesser_one_and_not_the_other_way() -> None:
    faults = CopyFaults()
    assert faults.add(fault("k", FaultKind.UNREACHABLE))
    assert faults.add(fault("k", FaultKind.DAMAGED))
    assert not faults.add(fault("k", FaultKind.MISSING))
    assert faults.report().counts == {("a", FaultKind.DAMAGED): 1}


def test_names_are_bounded_and_the_count_is_exact() -> None:
    faults = CopyFaults(named_max=2)
    for number in [*range(10), *range(10)]:
        faults.add(fault(f"k{number}"))
    report = faults.report()
    assert [one.key for one in report.named("a", FaultKind.DAMAGED)] == ["k0", "k1"]
    assert (report.count("a", FaultKind.DAMAGED), report.is_exact) == (10, True)


def test_past_the_bound_the_count_says_that_it_is_not_exact_and_hides_no_other_kind() -> None:
    faults = CopyFaults(counted_max=3)
    for number in range(5):
        faults.add(fault(f"k{number}", FaultKind.MISSING))
    assert faults.add(fault("worse"))
    report = faults.report()
    assert (report.count("a", FaultKind.MISSING), report.is_exact) == (3, False)
    assert report.faults[0].key == "worse"


def test_a_copy_that_was_made_anew_is_forgotten_and_may_break_again() -> None:
    faults = CopyFaults()
    faults.add(fault("k"))
    faults.mended("a", "k")
    assert faults.report().faults == ()
    assert faults.report().counts == {}
    assert faults.add(fault("k"))
