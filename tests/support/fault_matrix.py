"""docs/fault-matrix.md from the results of the tests that are its cells: python -m tests.support.fault_matrix

With a junit file of a run (pytest --junitxml=FILE) as its argument it takes the results from there; else it
runs the tests itself. A cell is a stage, a fault, how it has to end, and the test that shows it.
"""

# ruff: noqa: E501 - a table reads best with one line a row

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fault-matrix.md"
_I, _U = "tests/integration", "tests/unit"
ON, OVER, CLEAR = "continues and ends well", "the next run ends well", "ends in a sentence"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell: `test` is a pytest id without its parameters, or with the beginning of them."""

    stage: str
    fault: str
    ends: str
    test: str


def _cells() -> tuple[Cell, ...]:
    faults, crash = f"{_I}/test_faults.py", f"{_I}/test_crash.py::test_killed_or_failed_at_every_call"
    registry, trouble = f"{_I}/tools/test_registry.py", f"{_U}/registry/test_trouble.py"
    mirror, ecr = f"{_I}/stages/test_pin_and_mirror.py", f"{_I}/stages/test_ecr_path.py"
    systems, images = f"{_I}/test_filesystems.py", f"{_I}/test_image_path.py"
    nodes, created = f"{_I}/cluster/test_node_faults.py", f"{_U}/store/test_creation.py"
    believed, damaged = (
        "tests/regression/test_prune_cache_believed.py",
        "tests/regression/test_store_damaged_files.py",
    )
    fetch, rows = f"{faults}::test_converting_from_a_registry", []
    for fault, name, ends in (
        ("registry slow", "slow", ON),
        ("registry cuts the line", "cut", ON),
        ("registry sends other bytes", "wrong bytes", f"{CLEAR}; {OVER}"),
        ("registry flips a bit", "a flipped bit", f"{CLEAR}; {OVER}"),
        ("registry sends too little", "too short", f"{CLEAR}; {OVER}"),
        ("registry flaps", "flapping", ON),
        ("registry answers 500 for long", "500 for long", f"{CLEAR}; {OVER}"),
    ):
        rows.append(("convert", fault, ends, f"{fetch}[{name}-"))
    stalled = f"{_I}/test_signals.py::test_a_signal_is_not_kept_waiting_by_a_registry"
    for stage, verb in (
        ("convert", "native"),
        ("convert", "mksquashfs"),
        ("mirror", "mirror"),
        ("release", "release"),
        ("release", "all images"),
    ):
        rows.append(
            (stage, f"SIGTERM, SIGINT while the registry is silent ({verb})", CLEAR, f"{stalled}[{verb}-")
        )
    rows += [
        ("store", "a wrong digit in a cache", ON, f"{believed}::test_what_a_channel_names_stays_whatever_the_caches_say"),
        ("store", "an older intact cache", ON, f"{believed}::test_an_older_intact_cache_is_noticed"),
        ("store", "an event lost", CLEAR, f"{believed}::test_an_event_that_is_gone_stops_the_deletion"),
        ("store", "a record lost", CLEAR, f"{believed}::test_a_lost_record_whose_version_events_name_stops_the_deletion"),
        ("store", "a record or event damaged", CLEAR, f"{damaged}::test_what_is_no_record_or_event_is_one_sentence"),
        ("store", "a byte that is no text in a cache", ON, f"{damaged}::test_a_byte_that_is_no_text_in_one_cache_stops_nobody"),
        ("store", "a folder, pipe or link loop in a file's place", CLEAR, f"{damaged}::test_what_is_no_file_ends_no_verb_without_a_sentence"),
        ("store", "not mounted: any verb", CLEAR, f"{created}::test_no_verb_makes_a_store"),
        ("store", "not mounted: a mount point of fstab", CLEAR, f"{created}::test_a_mount_point_of_fstab_that_is_not_mounted"),
        ("store", "unmounted", CLEAR, f"{created}::test_a_real_file_system_that_is_unmounted"),
        ("release", "store goes away meanwhile", CLEAR, f"{created}::test_a_store_that_goes_away_while_an_image_is_made_is_not_made_anew"),
        ("store", "any file changed", f"{ON}, or {CLEAR}", f"{_U}/store/test_mutations.py::test_some_files_changed_in_some_ways"),
        ("any request", "registry flaps", ON, f"{trouble}::test_trouble_that_passes_is_waited_out"),
        ("any request", "registry answers 500 for long", CLEAR, f"{trouble}::test_trouble_that_lasts_ends_in_a_sentence"),
        ("any request", "registry asks for an hour", CLEAR, f"{trouble}::test_an_hour_is_not_waited_for"),
        ("any request", "AWS throttles", ON, f"{ecr}::test_trouble_on_every_kind_of_request_is_ridden_out"),
        ("pin, mirror", "registry cuts the line", ON, f"{mirror}::test_a_mirror_through_bad_lines_arrives_and_sends_nothing_twice"),
        ("pin, mirror", "registry sends other bytes", CLEAR, f"{mirror}::test_a_mirror_of_bytes_that_lie_leaves_no_image"),
        ("mirror", "registry answers 500 for long", f"{CLEAR}; {OVER}", f"{mirror}::test_a_mirror_while_a_registry_answers_500_ends_clearly_and_the_next_run_well"),
        ("mirror", "SIGKILL", OVER, f"{mirror}::test_a_mirror_that_is_killed_leaves_no_image_and_the_next_run_ends_it"),
        ("push", "registry cuts the line", ON, f"{registry}::test_an_upload_that_is_cut_arrives_whole"),
        ("push", "registry loses its last answer", ON, f"{registry}::test_an_upload_whose_last_answer_is_lost_is_done"),
        ("push", "password ends meanwhile", ON, f"{ecr}::test_a_password_that_ends_in_the_middle_of_a_push_and_of_a_download_is_renewed"),
        ("build, push", "engine killed", f"{CLEAR}; {OVER}", f"{faults}::test_the_engine_is_killed_in_the_middle_of_a_build_and_of_a_push"),
        ("push", "SIGKILL", OVER, f"{_I}/test_build_and_push.py::test_a_run_that_was_killed_after_its_push_is_resumed"),
        ("scan", "AWS throttles", ON, f"{_U}/scan/test_ecr.py::test_throttling_is_waited_out"),
        ("scan", "no result ever comes", CLEAR, f"{_U}/scan/test_ecr.py::test_a_state_that_never_changes_ends_at_the_limit"),
        ("fetch", "disk full", f"{CLEAR}; {OVER}", f"{faults}::test_fetching_onto_a_full_disk"),
        ("convert", "disk full", CLEAR, f"{_I}/test_convert.py::test_a_disk_that_fills_up_meanwhile"),
        ("convert", "SIGINT", CLEAR, f"{_I}/test_convert.py::test_interrupted_in_the_middle"),
        ("convert", "SIGINT twice", CLEAR, f"{faults}::test_converting_interrupted_twice[SIGINT"),
        ("convert", "SIGTERM twice", CLEAR, f"{faults}::test_converting_interrupted_twice[SIGTERM"),
        ("convert", "SIGKILL", OVER, f"{_I}/test_native_faults.py::test_killed_at_random_moments"),
        ("convert", "SIGKILL at every call that makes or removes scratch", OVER, f"{_I}/test_killed_scratch.py::test_killed_at_every_call"),
        ("convert", "out of memory: `ulimit -v`", CLEAR, "tests/regression/test_memory_error_without_a_sentence.py::test_a_command_with_little_memory_ends_in_a_sentence"),
        ("convert", "out of memory: a tool is killed", CLEAR, f"{faults}::test_the_kernel_kills_a_tool_that_takes_all_memory"),
        ("convert", "out of memory: we are killed", OVER, f"{faults}::test_the_kernel_kills_a_conversion_that_takes_all_memory"),
        ("convert", "cache damaged", ON, f"{_I}/test_native_faults.py::test_a_flipped_bit_anywhere_in_the_cache"),
        ("publish", "disk full", f"{CLEAR}; {OVER}", f"{systems}::test_a_disk_that_is_full_at_any_moment"),
        ("publish", "power lost", "what was reported is there, whole", f"{faults}::test_power_is_lost_while_publishing"),
        ("convert", "a pipe, symlink, folder or socket in the cache", f"{ON}, or {CLEAR}", f"{_U}/convert/test_traps_in_the_cache.py::test_packs_and_notes_that_are_no_files"),
        ("publish", "SIGINT, SIGTERM", CLEAR, f"{images}::test_ended_by_a_signal_nothing_is_half_there"),
        ("publish, get", "store read-only, away, and back", f"{CLEAR}; {OVER}", f"{faults}::test_the_store_goes_away_read_only_and_comes_back"),
        ("publish, promote, prune", "NFS loses a reply", ON, f"{systems}::test_a_life_on_a_file_system_that_misbehaves[lost-reply]"),
        ("publish, promote, prune", "stale NFS handle", ON, f"{systems}::test_a_life_on_a_file_system_that_misbehaves[stale]"),
        ("publish, promote, prune", "NFS shows new names late", ON, f"{systems}::test_two_clients_that_see_each_other_late"),
        ("publish, prune, lease, scratch", "clock an hour back", ON, f"{faults}::test_the_clock_jumps_by_an_hour[back]"),
        ("publish, prune, lease, scratch", "clock an hour forward", ON, f"{faults}::test_the_clock_jumps_by_an_hour[forward]"),
        ("the store's whole life", "all of these at random", "nothing lost, nothing half", f"{_I}/test_load.py::test_the_life_of_a_store_with_faults"),
    ]  # fmt: skip
    for error, word in (("ENOSPC", "disk full"), ("EDQUOT", "quota"), ("EIO", "EIO")):
        for call in ("write", "fsync", "rename"):
            test = f"{faults}::test_converting_while_the_disk_fails[{error}-{call}]"
            rows.append((f"convert: {call}", word, f"{CLEAR}; {OVER}", test))
    back = f"{faults}::test_the_disk_fails_while_the_finished_file_is_read_back"
    rows.append(("verify", "EIO", f"{CLEAR}; {OVER}", back))
    for action in ("publish", "promote", "yank", "prune", "sync"):
        for error, word in (
            ("EDQUOT", "quota"),
            ("EIO", "EIO"),
            ("ESTALE", "stale NFS handle"),
            ("EROFS", "read-only"),
        ):
            rows.append(
                (action, word, f"{CLEAR}; {OVER}", f"{faults}::test_the_store_fails[{action}-{error}]")
            )
    for action in ("publish", "promote", "yank", "prune", "sync"):
        rows.append((action, "SIGKILL or full disk at each call", OVER, f"{crash}[{action}]"))
    for stage in ("pin", "build", "push", "scan", "convert", "verify", "publish"):
        test = f"{_I}/test_bad_input.py::test_ctrl_c_at_any_stage_leaves_nothing_and_the_next_run_ends_the_work[{stage}"
        rows.append((stage, "SIGINT in the whole path", f"{CLEAR}; {OVER}", test))
    for code, word in ((28, "disk full"), (122, "quota"), (5, "EIO"), (30, "read-only")):
        rows.append(
            ("prewarm", word, f"{CLEAR}; {OVER}", f"{nodes}::test_a_prewarm_onto_a_disk_that_fails[{code}]")
        )
    for code, word in ((116, "stale NFS handle"), (5, "EIO"), (107, "store's server away")):
        rows.append(
            ("get", word, f"{CLEAR}; {OVER}", f"{nodes}::test_a_get_from_a_store_that_is_stale[{code}]")
        )
    rows += _elsewhere()
    return tuple(Cell(stage=stage, fault=fault, ends=ends, test=test) for stage, fault, ends, test in rows)


def _elsewhere() -> list[tuple[str, str, str, str]]:
    """Cells that are tests of one part: nodes, copies, signatures, AWS."""
    importer, mounts = f"{_U}/node/test_pyxis_importer.py", f"{_I}/cluster/test_shared_mount.py"
    names, kernel = f"{_I}/cluster/test_hostile_names.py", f"{_I}/cluster/test_kernel_mounts.py"
    warming, attest = f"{_I}/cluster/test_warming.py", f"{_I}/stages/test_attest_and_rescan.py"
    sync, s3, aws = f"{_U}/store/test_sync.py", f"{_I}/test_s3.py", f"{_U}/aws/test_ecr_trouble.py"
    ranged, odd = f"{_I}/test_layers_from_s3.py", "tests/regression/test_s3_odd_answers.py"
    handed = "tests/regression/test_enroot_unpacked_before_the_check.py"
    builds, drips = f"{_I}/test_build_faults.py", "tests/regression/test_session_endless_drip.py"
    full = f"{_I}/test_full_disks.py"
    engine = "tests/regression/test_engine_traceback_at_odd_answers.py"
    return [
        ("any request", "registry drips", CLEAR, f"{drips}::test_it_is_given_up_after_the_usual_attempts"),
        ("build", "disk full", f"{CLEAR}; {OVER}", f"{builds}::test_our_disk_is_full_when_a_build_begins"),
        ("build", "disk full meanwhile", CLEAR, f"{builds}::test_our_disk_fills_while_the_context_is_copied"),
        ("build", "no inode left", f"{CLEAR}; {OVER}", f"{builds}::test_our_disk_has_no_inode_left"),
        ("build", "engine's disk full", f"{CLEAR}; {OVER}", f"{builds}::test_the_engines_disk_fills_while_it_builds"),
        ("build", "SIGINT once and twice, SIGTERM", CLEAR, f"{builds}::test_a_build_that_is_ended_by_a_signal_leaves_no_step_at_work"),
        ("docker-daemon: as source", "disk full", f"{CLEAR}; {OVER}", f"{builds}::test_our_disk_fills_while_the_engine_saves_an_image"),
        *(
            (f"convert: {converter}, {place}", {"quota": "quota", "inodes": "no inode left"}[kind], f"{CLEAR}; {OVER}", f"{full}::test_a_conversion[{converter}-{place}-{kind}]")
            for converter, place, kind in (("native", "cache", "quota"), ("native", "out", "quota"), ("mksquashfs", "scratch", "quota"), ("mksquashfs", "out", "quota"), ("mksquashfs", "scratch", "inodes"))
        ),
        ("convert: enroot, scratch", "quota", CLEAR, f"{full}::test_enroot[quota]"),
        ("fetch", "quota", f"{CLEAR}; {OVER}", f"{full}::test_a_download[quota]"),
        ("fetch", "no inode left", f"{CLEAR}; {OVER}", f"{full}::test_a_download[inodes]"),
        ("scan", "quota", f"{CLEAR}; {OVER}", f"{full}::test_a_scan[quota]"),
        ("scan", "no inode left", f"{CLEAR}; {OVER}", f"{full}::test_a_scan[inodes]"),
        ("publish", "no inode left", f"{CLEAR}; {OVER}", f"{full}::test_a_store[inodes]"),
        ("push", "engine's disk full", f"{CLEAR}; {OVER}", f"{builds}::test_the_engines_disk_is_full_when_it_pushes"),
        ("build", "engine hangs", CLEAR, f"{_U}/docker/test_buildkit.py::test_an_engine_that_hangs_while_it_builds_is_not_waited_for"),
        ("build, push", "engine talks nonsense", CLEAR, f"{engine}::test_an_invalid_answer"),
        ("build, push", "engine hangs at a question", CLEAR, f"{engine}::test_a_question_that_is_never_answered"),
        ("get", "file damaged or gone", CLEAR, f"{importer}::test_a_damaged_file_is_refused_and_leaves_no_lease"),
        ("get", "index damaged", ON, f"{importer}::test_a_broken_index_is_not_believed"),
        ("get", "lease cannot be left", ON, f"{importer}::test_a_lease_that_cannot_be_left_does_not_stop_the_job"),
        ("kernel mount", "64 prologs at once", ON, f"{kernel}::test_64_prologs_at_once_make_one_mount"),
        ("kernel mount", "a file changes below it", f"{CLEAR}; {OVER}", f"{kernel}::test_a_file_that_was_changed_below_its_mount_is_named_and_mounted_anew"),
        ("kernel mount", "a file is damaged below it", f"{CLEAR}; {OVER}", f"{kernel}::test_a_file_that_was_damaged_below_its_mount_is_named_and_mounted_no_more"),
        ("kernel mount", "server of the store killed", f"{CLEAR}; {OVER}", f"{kernel}::test_after_the_server_of_the_store_was_killed_the_next_step_has_a_mount"),
        ("kernel mount", "a job without epilog", OVER, f"{kernel}::test_what_a_job_holds_that_had_no_epilog_is_released"),
        ("kernel mount", "none for the step, or not seen there", ON, f"{kernel}::test_the_shim_becomes_squashfuse"),
        ("kernel mount", "store hangs", ON, f"{kernel}::test_a_store_that_hangs_keeps_neither_steps_nor_epilogs_nor_other_images"),
        ("mount", "SIGKILL of a caller", ON, f"{mounts}::test_a_killed_caller_does_not_hold_the_mount"),
        ("mount", "squashfuse killed", ON, f"{mounts}::test_a_squashfuse_that_was_killed_is_mounted_again"),
        ("mount", "SIGTERM", CLEAR, f"{mounts}::test_a_signal_reaches_the_command_and_the_mount_goes"),
        ("run, test", "names of the image are traps", f"{ON}, or {CLEAR}", f"{names}::test_nothing_of_the_host_is_read_written_or_waited_for"),
        ("run, mount", "the .sqsh is a pipe, device, loop", CLEAR, f"{names}::test_a_sqsh_that_is_no_regular_file_is_not_waited_for"),
        ("convert", "the image cannot be started", CLEAR, f"{_I}/cluster/test_as_docker_starts_it.py::test_convert_says_why_and_leaves_no_file"),
        ("prewarm", "store gives other bytes", CLEAR, f"{warming}::test_wrong_bytes_get_no_name"),
        ("prewarm", "a node cannot", CLEAR, f"{warming}::test_a_node_that_cannot_be_warmed_is_reported"),
        ("sync", "cut inside a file", OVER, f"{sync}::test_a_copy_cut_inside_a_file_is_resumed"),
        ("sync", "source gives other bytes", CLEAR, f"{sync}::test_damaged_bytes_do_not_become_a_release"),
        ("sync to S3", "the line is cut", OVER, f"{s3}::test_an_upload_that_was_cut_is_resumed"),
        ("sync from S3", "the line is cut", OVER, f"{s3}::test_a_download_that_was_cut_is_resumed"),
        ("sync from S3", "answers are cut short", f"{CLEAR}; {OVER}", f"{odd}::test_an_answer_that_is_cut_is_resumed"),
        ("sync from S3", "one release is damaged or claims other sizes", f"{CLEAR}; the others are copied", f"{odd}::test_one_bad_release_does_not_stop_the_others"),
        ("sync from S3", "an incomplete or odd listing", CLEAR, f"{odd}::test_what_is_no_complete_listing_is_not_an_empty_bucket"),
        ("sync from S3", "an object grows after it was listed", f"{CLEAR}; the others are copied", f"{odd}::test_an_object_that_has_grown_since_the_listing_is_not_read"),
        ("sync to S3", "half a record is there", f"{CLEAR}; the others are copied", f"{s3}::test_half_a_record_in_the_bucket_stops_its_release_alone"),
        ("sync to and from S3", "other bytes", CLEAR, f"{s3}::test_damage_on_either_side_is_found"),
        ("convert from S3", "an object goes, is cut, has other bytes", ON, f"{ranged}::test_an_object_that_changes_between_any_two_reads"),
        ("convert from S3", "answers are cut short", ON, f"{ranged}::test_answers_that_are_cut_short"),
        ("convert from S3", "no network", ON, f"{ranged}::test_a_bucket_that_cannot_be_reached"),
        ("convert from S3", "the network goes away", ON, f"{ranged}::test_a_network_that_goes_away"),
        ("convert from S3", "no room for what is downloaded", ON, f"{ranged}::test_no_room_for_downloads"),
        ("attest", "a signer fails", ON, f"{attest}::test_what_is_installed_signs_and_its_failure_is_recorded"),
        ("attest", "disk full", f"{CLEAR}; {OVER}", f"{attest}::test_a_store_that_is_full_when_a_release_is_attested"),
        ("attest", "no registry, no tools", ON, f"{attest}::test_without_tools_and_registry_a_release_stands_and_says_what_is_missing"),
        ("scan", "disk full", f"{CLEAR}; {OVER}", f"{attest}::test_a_disk_that_is_full_while_trivy_scans"),
        ("rescan", "the scanner does not know", ON, f"{attest}::test_unknown_is_never_a_yank"),
        ("scan", "AWS answers 5xx for long", CLEAR, f"{aws}::test_the_gate_waits_through_throttling_and_ends_clearly_at_a_5xx"),
        ("each call of AWS", "throttled, 5xx, cut", ON, f"{aws}::test_trouble_that_passes_is_waited_out"),
        ("each call of AWS", "that for long", CLEAR, f"{aws}::test_trouble_that_lasts_names_the_call_and_what_to_do"),
        ("the whole path", "disk full before the work", CLEAR, f"{_I}/test_bad_input.py::test_a_full_disk_is_reported_before_the_work"),
        ("publish", "quota used up before", CLEAR, f"{_I}/test_shared_store.py::test_a_quota_that_is_used_up_is_reported_before_anything_is_written"),
        ("many images on Slurm", "a node dies", ON, f"{_I}/test_many_images.py::test_eight_images_on_two_nodes_of_which_one_dies"),
        ("convert", "enroot's cache damaged", ON, f"{handed}::test_a_layer_that_went_bad_in_the_cache_is_fetched_again"),
        ("convert", "disk full, packs and file", CLEAR, f"{_I}/test_native_faults.py::test_a_full_disk"),
    ]  # fmt: skip


CELLS = _cells()


def results(junit: Path) -> dict[str, str]:
    """Of each test that ran: passed, failed or skipped, by its id."""
    found = {}
    for case in ET.parse(junit).iter("testcase"):
        file = str(case.get("classname")).replace(".", "/") + ".py"
        outcome = "passed"
        for child in case:
            outcome = {"skipped": "skipped", "failure": "failed", "error": "failed"}.get(child.tag, outcome)
        found[f"{file}::{case.get('name')}"] = outcome
    return found


def of_cell(cell: Cell, found: Mapping[str, str]) -> list[str]:
    """The results of the tests that a cell names."""
    return [
        outcome
        for test, outcome in found.items()
        if test == cell.test or test.startswith((f"{cell.test}[", cell.test if "[" in cell.test else "\0"))
    ]


def page(found: Mapping[str, str]) -> str:
    """The table, one line a cell."""
    lines = [
        "<!-- Made by `python -m tests.support.fault_matrix` from the results of the tests: do not edit. -->",
        "",
        "# When parts fail",
        "",
        "Each line is a fault that tests inject into a stage, and how it ends there. In all of them nothing that was",
        "acknowledged is lost, and nothing partial is ever visible. The whole life of a store with random faults, for",
        "as long as you like: `python -m tests.soak --seconds 600`.",
        "",
        "| stage | fault | how it ends | tests | result |",
        "|---|---|---|---:|---|",
    ]
    for cell in sorted(CELLS, key=lambda cell: (cell.stage, cell.fault)):
        outcomes = of_cell(cell, found)
        well = (
            "passed"
            if outcomes and set(outcomes) <= {"passed", "skipped"} and "passed" in outcomes
            else "**not shown**"
        )
        name = re.sub(r"\[.*", "", cell.test.partition("::")[2])
        link = f"[{name}](../{cell.test.partition('::')[0]})"
        lines.append(f"| {cell.stage} | {cell.fault} | {cell.ends} | {len(outcomes)} | {well}: {link} |")
    return "\n".join(lines) + "\n"


def run(junit: Path) -> None:
    """Run the tests of all cells; `junit` is where their results go."""
    files = sorted({re.sub(r"\[.*", "", cell.test) for cell in CELLS})
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}", *files]
    subprocess.run(argv, cwd=ROOT, check=False)


def main() -> int:
    """Write the page; 1 when a cell is not shown."""
    if len(sys.argv) > 1:
        found: dict[str, str] = {}
        for name in sys.argv[1:]:
            found |= results(Path(name))
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder) / "junit.xml")
            found = results(Path(folder) / "junit.xml")
    text = page(found)
    PAGE.write_text(text, encoding="utf-8")
    return int("**not shown**" in text)


if __name__ == "__main__":
    sys.exit(main())
