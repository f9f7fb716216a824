from datetime import UTC, datetime, timedelta

import pytest

from vmm_server.cli.output import format_age, format_expiry, format_size, print_table

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 KB"),
        (9_960, "10 KB"),
        (98_251_808, "98 MB"),
        (999_700_000, "1.0 GB"),
        (1_234_567_890, "1.2 GB"),
        (3_200_000_000_000, "3.2 TB"),
    ],
)
def test_sizes_have_two_figures_or_more(num_bytes: int, text: str) -> None:
    assert format_size(num_bytes) == text


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(0), "0 seconds ago"),
        (timedelta(seconds=1.9), "1 second ago"),
        (timedelta(seconds=59), "59 seconds ago"),
        (timedelta(minutes=1), "1 minute ago"),
        (timedelta(hours=47), "1 day ago"),
        (timedelta(days=48), "48 days ago"),
    ],
)
def test_ages_are_in_the_largest_unit(span: timedelta, text: str) -> None:
    assert format_age(NOW - span, NOW) == text


def test_a_pinned_model_never_expires() -> None:
    assert format_expiry(datetime(2318, 1, 1, tzinfo=UTC), NOW) == "Forever"
    assert format_expiry(NOW + timedelta(minutes=4, seconds=30), NOW) == "4 minutes from now"
    assert format_expiry(NOW - timedelta(seconds=1), NOW) == "Stopping..."


def test_columns_are_as_wide_as_their_widest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "ID"), [("a-rather-long-name:latest", "1"), ("b", "")])
    assert capsys.readouterr().out == ("NAME                         ID\na-rather-long-name:latest    1\nb\n")


def test_a_table_without_rows_is_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "ID"), [])
    assert capsys.readouterr().out == "NAME    ID\n"
