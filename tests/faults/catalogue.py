"""The faults that the worker survives, and the tests that show it.

A test is named as pytest names it, without its parameters. What needs another machine, or more
time than a test has, says so.
"""

from __future__ import annotations

from dataclasses import dataclass

FAULTS = "tests/faults/"
KAFKA = FAULTS + "test_kafka.py::"
RECORDS = FAULTS + "test_records.py::"
DISK = FAULTS + "test_disk.py::"
TOPICS = FAULTS + "test_topics.py::"
LOAD = FAULTS + "test_load.py::"
LEDGER = FAULTS + "test_ledger.py::"
WORKER = "tests/test_worker.py::"
PROCESS = "tests/integration/test_faults.py::"
SNAPSHOT = "tests/learner/test_snapshot.py::"
STORE = "tests/backends/test_state.py::"
FOLLOWING = "tests/test_following.py::"
LIVE = "tests/integration/test_live.py::"
OUTER = "tests/integration/test_outer.py::"
INITIALIZATION = "tests/test_initialization.py::"

LEDGER_TEST = LEDGER + "test_no_fault_shows_in_outputs_or_state"


@dataclass(frozen=True, slots=True)
class Fault:
    number: int
    name: str
    tests: tuple[str, ...] = ()
    missing: str = ""
    """Why no test here shows it, or what the tests leave out."""

    @property
    def label(self) -> str:
        return f"fault-{self.number:02d}-{self.name}"


CATALOGUE = (
    Fault(
        1,
        "poison-message",
        (
            WORKER + "test_each_kind_of_bad_record_is_a_dead_letter_and_the_worker_goes_on",
            WORKER + "test_a_topic_of_bad_records_stops_the_worker_instead_of_being_drained",
            PROCESS + "test_every_kind_of_bad_record_is_a_dead_letter_that_says_where_and_why",
        ),
    ),
    Fault(
        2,
        "client-decode-error",
        (
            TOPICS + "test_an_unreadable_offset_is_one_dead_letter_and_a_replay_tells_it_no_more",
            KAFKA + "test_02_a_damaged_batch_is_a_dead_letter_and_the_rest_goes_on",
            "tests/backends/test_unreadable.py::"
            "test_a_codec_that_is_missing_is_named_and_its_batches_are_passed_over",
        ),
    ),
    Fault(
        3,
        "schema-change",
        (
            RECORDS + "test_features_that_come_and_go_in_the_events_change_nothing_else",
            RECORDS + "test_another_model_is_refused_with_the_cure_and_the_state_is_left_alone",
        ),
    ),
    Fault(
        4,
        "not-finite",
        (
            SNAPSHOT + "test_nothing_that_is_not_finite_is_ever_stored_or_served",
            "tests/learner/test_online.py::"
            "test_no_number_makes_a_parameter_or_a_prediction_that_is_not_finite",
            "tests/learner/test_schema.py::"
            "test_a_number_that_is_not_finite_or_too_large_is_not_missing_but_bad",
        ),
    ),
    Fault(
        5,
        "huge-message",
        (
            RECORDS + "test_a_huge_record_travels_by_reference",
            "tests/backends/test_codec.py::test_an_oversize_record_travels_by_reference",
        ),
    ),
    Fault(
        6,
        "unknown-label",
        (
            RECORDS + "test_a_class_beyond_the_cap_is_a_dead_letter_and_the_rest_goes_on",
            "tests/learner/test_schema.py::test_a_class_outside_the_list_is_rejected",
        ),
    ),
    Fault(
        7,
        "duplicates",
        (RECORDS + "test_an_offset_that_came_twice_is_learnt_once", LEDGER_TEST),
        "two events with one id at two offsets are two events",
    ),
    Fault(8, "out-of-order", (RECORDS + "test_times_out_of_order_do_not_change_the_order",)),
    Fault(9, "delayed-labels", (), "the join of late labels is an issue of its own"),
    Fault(
        10,
        "broker-restart",
        (
            KAFKA + "test_10_a_broker_that_hangs_costs_no_event",
            PROCESS + "test_a_broker_that_dies_and_comes_back_costs_no_event",
            PROCESS + "test_a_broker_that_stays_away_ends_idle_and_busy_workers_and_delays_no_stop",
        ),
    ),
    Fault(11, "leader-change", (KAFKA + "test_11_killed_leaders_of_three_brokers_lose_nothing",)),
    Fault(
        12,
        "network",
        (
            KAFKA + "test_12_a_worker_that_is_cut_off_is_replaced_and_comes_back",
            KAFKA + "test_12_a_slow_and_a_broken_link_cost_no_event",
        ),
    ),
    Fault(
        13,
        "rebalance",
        (
            LOAD
            + "test_a_partition_revoked_between_any_two_events_goes_on_elsewhere_to_the_same_bits",
            LEDGER_TEST,
            KAFKA + "test_27_13_workers_that_join_and_leave_at_random_times_do_not_show",
        ),
    ),
    Fault(
        14,
        "kill",
        (
            LEDGER_TEST,
            LEDGER + "test_a_planted_error_is_found",
            KAFKA + "test_14_kills_of_workers_and_broker_do_not_show",
        ),
        "1,000 seeds by hand: python -m tests.faults.ledger --seeds 1000 --jobs 2",
    ),
    Fault(
        15,
        "disk-full",
        (
            DISK + "test_a_worker_waits_while_the_disk_is_full_and_goes_on",
            DISK + "test_a_disk_that_refuses_ends_the_worker_with_its_own_exit_code",
            STORE + "test_a_full_disk_leaves_the_old_state",
            STORE + "test_a_full_disk_at_a_checkpoint_loses_nothing",
        ),
    ),
    Fault(
        16,
        "store-corruption",
        (
            DISK + "test_a_damaged_store_is_made_anew_from_the_topic_to_the_same_bits",
            "tests/backends/test_state_damage.py::test_random_damage_is_found_or_harmless",
            LEDGER_TEST,
        ),
    ),
    Fault(
        17,
        "incompatible-version",
        (
            "tests/learner/test_golden.py::test_what_a_release_wrote_is_read_as_what_it_was",
            STORE + "test_a_file_of_another_format_is_moved_aside",
        ),
    ),
    Fault(18, "slow-downstream", (LOAD + "test_what_waits_for_a_commit_is_bounded",)),
    Fault(
        19,
        "context-explosion",
        (DISK + "test_many_contexts_stay_within_their_room_and_leave_with_time",),
        "10 million keys are for the benchmark",
    ),
    Fault(20, "hot-key", (RECORDS + "test_a_hot_partition_does_not_starve_another",)),
    Fault(
        21,
        "clock-skew",
        (RECORDS + "test_a_time_in_the_far_future_is_clamped_and_expires_nobody",),
        "a jump of the machine's own clock needs another machine; no state reads it",
    ),
    Fault(
        22,
        "topic-made-anew",
        (
            TOPICS + "test_a_topic_made_anew_stops_the_worker_until_that_is_accepted",
            TOPICS + "test_a_worker_notices_that_its_topic_is_made_anew_under_it",
            TOPICS
            + "test_records_deleted_below_the_position_stop_the_worker_until_that_is_accepted",
            KAFKA + "test_22_a_topic_made_anew_stops_the_worker_until_that_is_accepted",
            KAFKA + "test_22_deleted_records_stop_the_worker_until_that_is_accepted",
        ),
    ),
    Fault(
        23,
        "offsets-expired",
        (
            TOPICS + "test_without_the_groups_offsets_it_goes_on_at_the_barrier",
            KAFKA + "test_23_expired_offsets_are_the_barriers",
        ),
    ),
    Fault(
        24,
        "slow-learner",
        (
            LOAD + "test_a_slow_learner_keeps_polling_and_gives_up_partitions_meanwhile",
            PROCESS + "test_a_worker_frozen_beyond_its_session_publishes_nothing_twice",
        ),
    ),
    Fault(
        25,
        "malicious-file",
        (
            INITIALIZATION + "test_bytes_that_are_not_an_initialization_are_refused",
            INITIALIZATION + "test_more_bytes_than_the_cap_are_not_even_read",
            SNAPSHOT + "test_bytes_that_are_whole_but_wrong_reach_no_array",
            STORE + "test_no_name_leads_out_of_the_directory",
            STORE + "test_a_file_with_a_trigger_is_moved_aside",
            FAULTS + "test_catalogue.py::test_nothing_of_ours_unpickles",
        ),
    ),
    Fault(
        26,
        "metrics-cardinality",
        (
            "tests/backends/test_metrics.py::"
            "test_ten_thousand_contexts_leave_the_number_of_series_unchanged",
        ),
    ),
    Fault(
        27,
        "sigterm",
        (
            PROCESS + "test_a_stop_under_full_load_commits_and_the_next_start_goes_on",
            KAFKA + "test_27_13_workers_that_join_and_leave_at_random_times_do_not_show",
        ),
    ),
    Fault(
        28,
        "twins",
        (
            WORKER + "test_of_two_workers_with_one_name_one_ends",
            PROCESS + "test_of_two_workers_with_one_name_one_ends_and_names_the_cure",
            KAFKA + "test_28_nothing_of_a_fenced_twin_is_visible",
        ),
    ),
    Fault(
        29,
        "bad-initialization",
        (
            "tests/meta/test_gate.py::test_one_that_is_not_finite_is_rejected",
            "tests/meta/test_gate.py::test_one_that_means_the_other_label_is_rejected",
            FOLLOWING + "test_a_bad_one_is_refused_told_and_never_served",
            FOLLOWING + "test_after_a_restart_a_bad_one_is_refused_again",
            LIVE + "test_workers_take_what_is_published_and_nothing_that_is_bad",
        ),
    ),
    Fault(
        30,
        "outer-loop-crash",
        (
            OUTER + "test_killed_at_random_times_it_never_leaves_a_current_one_that_is_not_whole",
            OUTER + "test_of_two_loops_one_ends_and_names_the_cure",
            "tests/test_outer.py::"
            "test_a_crash_between_publication_and_checkpoint_costs_only_optimizer_state",
        ),
    ),
    Fault(
        31,
        "more-partitions",
        (
            TOPICS + "test_more_partitions_stop_the_worker_until_that_is_accepted",
            KAFKA + "test_31_more_partitions_stop_the_worker_until_that_is_accepted",
        ),
    ),
    Fault(
        32,
        "detector-storm",
        (LOAD + "test_a_storm_of_drift_adapts_no_oftener_than_its_detector_may",),
    ),
    Fault(33, "memory-leak", (), "30 minutes and longer, by hand"),
    Fault(
        34,
        "loop-dead",
        (
            "tests/test_watchdog.py::test_a_loop_stuck_in_a_library_ends_with_its_stack",
            "tests/test_watchdog.py::test_a_loop_that_turns_lives",
        ),
    ),
)
