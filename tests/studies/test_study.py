"""Studies: intervals compared with SciPy's, verdicts, pairing, and the three files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tangram.errors import TangramError
from tangram.tables import CLAIMS, MEASUREMENTS, read_table
from tangram_studies.study import Claim, Interval, NotReproduced, Study, difference, interval, verdict_of, write_study


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=9).filter(lambda values: np.ptp(values) > 1e-6))
def test_interval_is_scipys_t_interval(values):
    found = interval(values)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)


def test_a_difference_has_welchs_interval():
    one, other = [1.0, 2.0, 4.0], [0.5, 0.7, 0.6, 0.8]
    variances = [np.var(x, ddof=1) / len(x) for x in (one, other)]
    freedom = sum(variances) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, (one, other), strict=True))
    half = stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5
    found, mean = difference(one, other), np.mean(one) - np.mean(other)
    assert (found.estimate, found.low, found.high) == pytest.approx((mean, mean - half, mean + half))


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="at least two"):
        interval([1.0])


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.1, 0.3, "supported"), (-0.3, -0.1, "refuted"), (-0.1, 0.3, "inconclusive")]
)
def test_an_interval_across_the_threshold_decides_nothing(low, high, expected):
    assert verdict_of(Interval((low + high) / 2, low, high)) == expected


def example() -> Study:
    study = Study("example", "A paper", "0000.00000")
    for seed, (one, other) in enumerate([(1.0, 0.5), (2.0, 1.4), (3.0, 2.6)]):
        study.record("main", "one", seed, "loss", one)
        study.record("main", "other", seed, "loss", other)
    found = study.paired("main", "loss", "one", "other")
    study.claims.append(Claim.from_interval(found, claim="larger", statement="one is larger", where="Table 1", seeds=3))
    study.not_reproduced.append(NotReproduced("ImageNet", "too large", "scale: full"))
    return study


def test_pairs_are_by_seed():
    assert example().claims[0].estimate == pytest.approx(0.5)
    lacking = example()
    lacking.measurements.pop()
    with pytest.raises(TangramError, match="differ in their seeds"):
        lacking.paired("main", "loss", "one", "other")


def test_an_arms_interval_is_over_its_own_seeds_at_its_own_x():
    study = example()
    study.record("main", "one", 0, "loss", 99.0, x=1)
    study.record("main", "one", 1, "loss", 97.0, x=1)
    assert study.over_seeds("main", "loss", "one") == interval([1.0, 2.0, 3.0])
    assert study.over_seeds("main", "loss", "one", 1) == interval([99.0, 97.0])


def test_the_files_hold_what_was_found(tmp_path):
    write_study(example(), tmp_path, {"tangram.command": "test"})
    claims = read_table(tmp_path / "claims.parquet", CLAIMS)
    assert claims.loc[0, ["claim", "verdict"]].tolist() == ["larger", "supported"]
    assert len(read_table(tmp_path / "measurements.parquet", MEASUREMENTS)) == 6
    page = (tmp_path / "report.html").read_text()
    assert all(text in page for text in ("A paper", "larger", "supported", "ImageNet"))


def test_a_claim_is_made_once(tmp_path):
    study = example()
    study.claims *= 2
    with pytest.raises(TangramError, match="not unique"):
        write_study(study, tmp_path, {})
