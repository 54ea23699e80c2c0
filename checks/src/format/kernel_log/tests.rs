//! Lines in every envelope and shape, floods, and lines that only look like them.

use proptest::prelude::*;

use super::*;

fn events(text: &str) -> Vec<What> {
    KernelLog::read(text.as_bytes())
        .events
        .into_iter()
        .map(|event| event.what)
        .collect()
}

fn classes(text: &str) -> Vec<&'static str> {
    let log = KernelLog::read(text.as_bytes());
    let meanings = log.meanings();
    meanings.into_iter().map(|(_, class)| class).collect()
}

fn xid_79() -> What {
    What::Xid {
        bdf: "0000:b9:00.0".into(),
        code: 79,
        asks_for: None,
        fatal: None,
    }
}

#[test]
fn an_xid_is_found_in_every_envelope() {
    let message =
        "NVRM: Xid (PCI:0000:b9:00): 79, pid=1234, name=python, GPU has fallen off the bus.";
    for envelope in [
        "",
        "4,1234,567890,-;",
        "<4>[  201.673948] ",
        "[  201.673948] ",
        "[Mon Nov 23 22:34:19 2026] ",
        "kern  :warn  : [  201.673948] ",
        "kern  :warn  : 2026-11-23T22:34:19,123456+00:00 ",
        "2026-11-23T22:34:19,123456+00:00 ",
        "Nov  3 22:34:19 ip-10-0-1-7 kernel: [  201.673948] ",
        "Nov 23 22:34:19 ip-10-0-1-7 kernel: ",
        "2026-11-23T22:34:19.123456+00:00 ip-10-0-1-7 kernel: ",
    ] {
        assert_eq!(
            events(&format!("{envelope}{message}\n")),
            [xid_79()],
            "in `{envelope}`"
        );
    }
}

#[test]
fn what_a_process_writes_accuses_nothing() {
    let message = "NVRM: Xid (PCI:0000:b9:00): 79, GPU has fallen off the bus.";
    for envelope in [
        "12,1234,567890,-;",
        "<12>",
        "user  :warn  : [  201.673948] ",
        "Nov 23 22:34:19 host python[77]: ",
        "Nov 23 22:34:19 host app: kernel: ",
        "[  1.0] audit: ",
        "6,1,2,-;systemd: ",
    ] {
        assert_eq!(
            events(&format!("{envelope}{message}\n")),
            [],
            "in `{envelope}`"
        );
    }
}

#[test]
fn a_process_name_may_hold_anything() {
    let text = "NVRM: Xid (PCI:0000:b9:00): 79, pid='<unknown>', name=a, b: 13 (PCI:0000:01:00): 48, lost\n";
    assert_eq!(events(text), [xid_79()]);
}

/// The kernel prints the name that a process gave itself (15 bytes) and that of its program, as `segfault`, the OOM killer and
/// others do (`arch/x86/mm/fault.c`, `mm/oom_kill.c`, `fs/exec.c` of Linux).
#[test]
fn names_of_processes_and_programs_accuse_nothing() {
    for name in [
        "EDAC MC0: 1 UE ",
        "EDAC MC0: 1 CE",
        "NEURON_HW_ERR=X",
        "mce: Uncorrecte",
        "mce: CPU 3: Mac",
        "I/O error, dev ",
        "a: AER: Uncorre",
    ] {
        for line in [
            format!(
                "{name}[1234]: segfault at 0 ip 55d0 sp 7ffe error 4 in a.out[55d0+1000] likely on CPU 1 (core 1, socket 0)"
            ),
            format!(
                "{name} invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0"
            ),
            format!("CPU: 3 PID: 1 Comm: {name} Not tainted 6.1.0"),
        ] {
            assert_eq!(events(&format!("4,9,99000000,-;{line}\n")), [], "{line}");
        }
    }
    let program = "NEURON_HW_ERR=HBM_UNCORRECTABLE_ERROR nd-id=0";
    for line in [
        format!("a.out[1234]: segfault at 0 ip 55d0 sp 7ffe error 4 in {program}[55d0+1000]"),
        format!(
            "traps: a.out[1234] trap invalid opcode ip:55d0 sp:7ffe error:0 in {program}[55d0+1000]"
        ),
        format!("process '/tmp/ {program}' started with executable stack"),
    ] {
        assert_eq!(events(&format!("4,9,99000000,-;{line}\n")), [], "{line}");
    }
}

#[test]
fn an_error_of_a_part_of_a_gpu_is_one_of_the_gpu() {
    for place in ["GPU-I:05", "GPU-I:01 GPU-CI:00"] {
        let line = format!(
            "NVRM: Xid (PCI:0000:b9:00 {place}): 95, pid=7, name=x, Uncontained ECC error\n"
        );
        assert_eq!(classes(&line), ["gpu.memory.uncorrectable_now"]);
    }
}

#[test]
fn old_and_short_xid_lines_are_read() {
    for text in [
        "NVRM: Xid (0000:b9:00): 79, Channel 00000001\n",
        "NVRM: Xid (PCI:0000:b9:00.0): 79\n",
    ] {
        assert_eq!(events(text), [xid_79()]);
    }
    for text in [
        "NVRM: Xid (PCI:0000:b9:00): abc\n",
        "NVRM: Xid : 32\n",
        "NVRM: Xid (PCI:zz): 79\n",
    ] {
        assert_eq!(events(text), []);
    }
}

#[test]
fn the_text_of_xid_154_is_trusted_over_the_catalogue() {
    let ask = |what: &str| {
        format!(
            "NVRM: Xid (PCI:0008:01:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to {what}\n"
        )
    };
    assert_eq!(
        classes(&ask("0x2 (Node Reboot Required)")),
        ["gpu.needs_reboot"]
    );
    assert_eq!(
        classes(&ask("0x1 (GPU Reset Required)")),
        ["gpu.needs_reset"]
    );
    assert_eq!(classes(&ask("0x3 (Drain P2P)")), ["gpu.needs_reset"]);
    assert_eq!(classes(&ask("0x5 (Recover IMEX)")), ["nvlink.fabric"]);
    assert_eq!(classes(&ask("0x0 (None)")), ["gpu.application"]);
    assert_eq!(
        classes("NVRM: Xid (PCI:0008:01:00): 154, something new\n"),
        ["gpu.suspect"]
    );
}

#[test]
fn a_double_bit_error_is_graver_when_the_remap_failed_on_the_same_gpu() {
    let dbe = "NVRM: Xid (PCI:0000:01:00): 48, DBE\n";
    assert_eq!(classes(dbe), ["gpu.memory.uncorrectable_now"]);
    let same = format!("{dbe}NVRM: Xid (PCI:0000:01:00): 64, Row remapping failure\n");
    assert_eq!(
        classes(&same),
        ["gpu.memory.remap_failed", "gpu.memory.remap_failed"]
    );
    let other = format!("{dbe}NVRM: Xid (PCI:0000:02:00): 64, Row remapping failure\n");
    assert_eq!(
        classes(&other),
        ["gpu.memory.uncorrectable_now", "gpu.memory.remap_failed"]
    );
}

#[test]
fn an_application_s_own_fault_does_not_accuse_the_gpu() {
    for code in [13, 31, 43, 45, 69] {
        assert_eq!(
            classes(&format!("NVRM: Xid (PCI:0000:01:00): {code}, x\n")),
            ["gpu.application"],
            "{code}"
        );
    }
    assert_eq!(
        classes("NVRM: Xid (PCI:0000:01:00): 999, x\n"),
        ["gpu.suspect"]
    );
    assert_eq!(
        classes("NVRM: Xid (PCI:0000:01:00): 62, x\n"),
        ["gpu.needs_reset"]
    );
}

#[test]
fn an_xid_that_a_person_has_to_look_into_is_no_application_s() {
    for (code, class) in [
        (54, "gpu.power_missing"),
        (63, "gpu.memory.remap_logged"),
        (74, "nvlink.xid"),
        (92, "gpu.suspect"),
        (94, "gpu.suspect"),
        (119, "gpu.gsp"),
        (120, "gpu.gsp"),
        (137, "gpu.suspect"),
    ] {
        let line = format!("NVRM: Xid (PCI:0000:01:00): {code}, x\n");
        assert_eq!(classes(&line), [class], "{code}");
    }
}

#[test]
fn a_driver_that_was_loaded_again_has_cleared_what_a_reset_clears() {
    let loading = "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.158.01\n";
    let xid = |code: u32| format!("NVRM: Xid (PCI:0000:01:00): {code}, x\n");
    assert_eq!(classes(&format!("{}{loading}", xid(95))), [""; 0]);
    assert_eq!(
        classes(&format!("{loading}{}", xid(95))),
        ["gpu.memory.uncorrectable_now"]
    );
    assert_eq!(classes(&format!("{}{loading}", xid(79))), ["gpu.lost"]);
    assert_eq!(
        classes(&format!("{}{loading}", xid(64))),
        ["gpu.memory.remap_failed"]
    );
}

#[test]
fn nvlink_5_errors_follow_their_own_severity() {
    let line = |severity: &str| {
        format!(
            "NVRM: Xid (PCI:0000:04:00): 145, RLW_REMAP {severity} XC0 i0 Link -1 (0x00000004 0x00000040)\n"
        )
    };
    assert_eq!(classes(&line("Fatal")), ["nvlink.errors"]);
    assert_eq!(classes(&line("Nonfatal")), ["nvlink.suspect"]);
}

#[test]
fn a_switch_error_counts_once_and_by_its_severity() {
    let text = "nvidia-nvswitch0: SXid (PCI:0000:c3:00.0): 24007, Fatal, Link 28 sourcetrack timeout error (First)\n\
                nvidia-nvswitch0: SXid (PCI:0000:c3:00.0): 24007, Severity 1 Engine instance 00\n\
                nvidia-nvswitch0: SXid (PCI:0000:c3:00.0): 24007, Data {0x50610002, 0x10100030}\n\
                nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress\n";
    assert_eq!(classes(text), ["nvswitch.fatal", "nvswitch.nonfatal"]);
    for end in [
        "26006, SOE HALTED",
        "26007, SOE EXTERR",
        "26008, SOE Watchdog error",
    ] {
        let text = format!("nvidia-nvswitch0: SXid (PCI:0004:00:00.0): {end}\n");
        assert_eq!(classes(&text), ["nvswitch.suspect"], "{end}");
    }
}

#[test]
fn a_gpu_that_dies_without_an_xid_is_found_in_three_lines() {
    let text = "[ 1843.308145] NVRM: The NVIDIA GPU 0000:b3:00.0\n\
                \x20              NVRM: (PCI ID: 10de:26b5) installed in this system has\n\
                \x20              NVRM: fallen off the bus and is not responding to commands.\n";
    assert_eq!(
        events(text),
        [What::OffTheBus {
            bdf: "0000:b3:00.0".into()
        }]
    );
}

#[test]
fn a_neuron_error_names_device_and_core() {
    let text = "6,1,2,-;NEURON_HW_ERR=SRAM_UNCORRECTABLE_ERROR instance-id=i-0 hostname=h nd-id=3 nc-id=1 \
                serial-num=19fcda00f5ff6eb9 action=TERMINATE_INSTANCE\n";
    assert_eq!(
        events(text),
        [What::Neuron {
            error: "SRAM_UNCORRECTABLE_ERROR".into(),
            device: Some(3),
            core: Some(1)
        }]
    );
    assert_eq!(classes(text), ["neuron.uncorrectable"]);
    assert_eq!(
        classes("NEURON_HW_ERR=DMA_ERROR nd-id=0 nc-id=0\n"),
        ["neuron.hardware"]
    );
    assert_eq!(
        classes("NEURON_HW_ERR=HANG_ON_COLLECTIVES nd-id=0 nc-id=0\n"),
        ["neuron.hang"]
    );
}

#[test]
fn a_neuron_error_is_found_behind_any_prefix_and_without_a_device() {
    for (line, named) in [
        (
            "3,100,5000,-;2026-11-24T20:43:50Z NEURON_HW_ERR=HBM_UNCORRECTABLE_ERROR nd-id=0",
            Some(0),
        ),
        (
            "3,100,5000,-;NEURON_HW_ERR=HBM_UNCORRECTABLE_ERROR affecting neuron devices",
            None,
        ),
        (
            "3,100,5000,-;neuron0: NEURON_HW_ERR=HBM_UNCORRECTABLE_ERROR device=0",
            Some(0),
        ),
        (
            "3,100,5000,-;neuron4: NEURON_HW_ERR=HBM_UNCORRECTABLE_ERROR",
            Some(4),
        ),
    ] {
        let found = events(line);
        let [What::Neuron { device, .. }] = found[..] else {
            panic!("`{line}`: {found:?}");
        };
        assert_eq!(device, named, "{line}");
    }
    for line in [
        "11,100,5000,-;x NEURON_HW_ERR=HBM_UNCORRECTABLE_ERROR nd-id=0",
        "5,100,5000,-;audit: type=1327 proctitle=NEURON_HW_ERR=DMA_ERROR nd-id=0",
    ] {
        assert_eq!(events(line), [], "{line}");
    }
}

#[test]
fn machine_checks_are_told_apart_by_severity() {
    let class = |text: &str| classes(text);
    assert_eq!(
        class("mce: [Hardware Error]: CPU 3: Machine Check: 0 Bank 7: be00000000800400\n"),
        ["host.kernel.mce"]
    );
    assert_eq!(
        class("mce: [Hardware Error]: CPU 3: Machine Check: 0 Bank 7: 8c00004000010091\n"),
        ["host.kernel.corrected"]
    );
    assert_eq!(
        class(
            "EDAC MC0: 1 UE memory read error on CPU_SrcID#0_Channel#1 (channel:1 slot:0 page:0x12 offset:0x0)\n"
        ),
        ["host.kernel.mce"]
    );
    assert_eq!(
        class(
            "EDAC MC12: 1 CE on mc#12csrow#2channel#1 (csrow:2 channel:1 page:0x5 offset:0x0 grain:64 syndrome:0x0)\n"
        ),
        ["host.kernel.corrected"]
    );
    assert_eq!(
        class("mce: CPU0: Thermal monitoring enabled\n"),
        [] as [&str; 0]
    );
}

/// A record as `cper_estatus_print` of Linux 6.1 writes it.
fn firmware(mark: &str, severity: &str, sections: &[&str]) -> String {
    let mut lines = vec![
        "Hardware error from APEI Generic Hardware Error Source: 4".to_owned(),
        format!("event severity: {severity}"),
        format!(" Error 0, type: {severity}"),
    ];
    lines.extend(sections.iter().map(|section| format!("  {section}")));
    let line = |line: &String| format!("[  77.1] {mark}[Hardware Error]: {line}\n");
    lines.iter().map(line).collect()
}

#[test]
fn what_the_firmware_reports_is_judged_by_severity_and_section() {
    let memory = ["section_type: memory error", "physical_address: 0x8000"];
    let pcie = [
        "section_type: PCIe error",
        "port_type: 0, PCIe end point",
        "device_id: 0000:5e:00.0",
    ];
    for (severity, sections, class) in [
        ("corrected", &memory[..], Some("host.kernel.corrected")),
        ("recoverable", &memory[..], Some("host.kernel.mce")),
        ("fatal", &memory[..], Some("host.kernel.mce")),
        ("fatal", &[], Some("host.kernel.mce")),
        ("info", &memory[..], None),
        ("recoverable", &pcie[..], Some("host.pcie.errors")),
        ("corrected", &pcie[..], None),
    ] {
        let text = firmware("{7}", severity, sections);
        let found = classes(&text);
        assert_eq!(found, class.into_iter().collect::<Vec<_>>(), "{text}");
    }
    assert_eq!(
        events(&firmware("{1}", "recoverable", &pcie)),
        [What::Pcie {
            bdf: "0000:5e:00.0".into()
        }]
    );
}

#[test]
fn records_of_the_firmware_that_follow_each_other_are_told_apart() {
    let text = firmware("{1}", "fatal", &[])
        + &firmware("{2}", "corrected", &["section_type: memory error"])
        + "nvidia: unrelated\n"
        + &firmware("{3}", "recoverable", &["section_type: memory error"]);
    assert_eq!(
        classes(&text),
        [
            "host.kernel.mce",
            "host.kernel.corrected",
            "host.kernel.mce"
        ]
    );
}

#[test]
fn what_the_firmware_kept_of_the_boot_before_asks_for_no_replacement() {
    let text = format!(
        "BERT: Error records from previous boot:\n{}",
        firmware("", "fatal", &["section_type: memory error"])
    );
    assert_eq!(classes(&text), ["host.kernel.boot_before"]);
}

#[test]
fn what_a_reset_cleared_is_no_fault_any_more() {
    let xid = |rest: &str| format!("NVRM: Xid (PCI:0000:01:00): {rest}\n");
    let asks = |what: &str| {
        xid(&format!(
            "154, GPU recovery action changed from 0x0 (None) to {what}"
        ))
    };
    let lost = xid("79, GPU has fallen off the bus.");
    let reset = asks("0x1 (GPU Reset Required)");
    let recovered = asks("0x0 (None)");
    // Everything that was cleared, then what came after it.
    assert_eq!(
        classes(&format!("{lost}{reset}{recovered}")),
        ["gpu.application"]
    );
    assert_eq!(
        classes(&format!("{lost}{reset}{recovered}{lost}")),
        ["gpu.application", "gpu.lost"]
    );
    // The last word of the driver is the one that counts.
    assert_eq!(
        classes(&format!("{reset}{}", asks("0x2 (Node Reboot Required)"))),
        ["gpu.needs_reboot"]
    );
    // No reset mends a row that could not be remapped, and none mends another GPU.
    let remap = xid("64, Row remapping failure");
    assert_eq!(
        classes(&format!("{remap}{recovered}")),
        ["gpu.memory.remap_failed", "gpu.application"]
    );
    let other = "NVRM: Xid (PCI:0000:02:00): 79, x\n";
    assert_eq!(
        classes(&format!("{other}{recovered}")),
        ["gpu.lost", "gpu.application"]
    );
}

#[test]
fn a_fault_after_a_recovery_is_kept_through_a_flood() {
    let xid = |rest: &str| format!("NVRM: Xid (PCI:0000:01:00): {rest}\n");
    let lost = xid("79, x");
    let recovered = xid("154, GPU recovery action changed from 0x1 to 0x0 (None)");
    let flood = xid("31, x").repeat(3000);
    let text = format!("{lost}{recovered}{flood}{lost}");
    assert_eq!(classes(&text).last(), Some(&"gpu.lost"));
}

#[test]
fn the_first_record_tells_how_much_was_overwritten() {
    let overwritten = |text: &str| KernelLog::read(text.as_bytes()).overwritten;
    assert_eq!(overwritten("6,5120,1,-;x\n6,5121,2,-;y\n"), 5120);
    let log = KernelLog::read(b"3,9,1234567,-;NVRM: Xid (PCI:0000:01:00): 79, x\n");
    assert_eq!(log.events[0].at_us, Some(1_234_567));
    assert_eq!(overwritten("6,0,1,-;Linux version 6.1\n"), 0);
    assert_eq!(overwritten("[  0.0] Linux version 6.1\n"), 0);
}

#[test]
fn pcie_disk_and_memory_lines_are_found() {
    assert_eq!(
        events(
            "pcieport 0000:00:01.0: AER: Uncorrectable (Fatal) error message received from 0000:16:00.0\n"
        ),
        [What::Pcie {
            bdf: "0000:16:00.0".into()
        }]
    );
    assert_eq!(
        events(
            "nvme 0000:5e:00.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer\n"
        ),
        [What::Pcie {
            bdf: "0000:5e:00.0".into()
        }]
    );
    for line in [
        "pcieport 0000:5e:00.0: AER: Multiple Uncorrectable (Non-Fatal) error message received from 0000:5e:00.0",
        "pcieport 0000:5e:00.0: AER: Multiple Uncorrected (Fatal) error received: 0000:5e:00.0",
        "nvme 0000:5e:00.0: AER: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer",
    ] {
        let found = What::Pcie {
            bdf: "0000:5e:00.0".into(),
        };
        assert_eq!(events(line), [found], "{line}");
    }
    assert_eq!(
        events("nvme 0000:5e:00.0: PCIe Bus Error: severity=Correctable, type=Physical Layer\n"),
        []
    );
    assert_eq!(
        events(
            "blk_update_request: I/O error, dev nvme1n1, sector 8 op 0x0\nI/O error, dev loop0, sector 1\n"
        ),
        [What::Disk {
            device: "nvme1n1".into()
        }]
    );
    assert_eq!(
        events("Out of memory: Killed process 77 (python) total-vm:1kB\n"),
        [What::OutOfMemory]
    );
}

#[test]
fn a_flood_is_bounded_and_counted() {
    let text = "NVRM: Xid (PCI:0000:b9:00): 79, x\n".repeat(3000);
    let log = KernelLog::read(text.as_bytes());
    assert_eq!(
        (log.events.len(), log.not_kept, log.lines),
        (1000, 2000, 3000)
    );
}

#[test]
fn a_flood_of_one_kind_hides_no_other() {
    let flood = "NVRM: Xid (PCI:0000:b9:00): 31, x\n".repeat(3000);
    let log = KernelLog::read(format!("{flood}NVRM: Xid (PCI:0000:b9:00): 79, x\n").as_bytes());
    assert!(log.xids_of("0000:b9:00.0").contains(&79));
    assert!(!log.kinds_lost);
}

#[test]
fn a_gpu_that_dies_is_found_in_one_record_of_the_kernel_and_in_its_short_form() {
    let gone = [What::OffTheBus {
        bdf: "0000:06:00.0".to_owned(),
    }];
    let record = "NVRM: The NVIDIA GPU 0000:06:00.0\\x0aNVRM: (PCI ID: 10de:2330) installed in this system has\\x0aNVRM: fallen off the bus and is not responding to commands.\n";
    assert_eq!(events(record), gone);
    assert_eq!(
        events("NVRM: GPU 0000:06:00.0: GPU has fallen off the bus.\n"),
        gone
    );
}

#[test]
fn a_quotation_is_printable() {
    let log = KernelLog::read(b"NVRM: Xid (PCI:0000:b9:00): 79, \x1b[31mred\xff\n");
    assert!(
        log.events[0].quote.chars().all(|c| !c.is_control()),
        "{:?}",
        log.events[0].quote
    );
}

#[test]
fn every_row_of_the_catalogue_can_be_read() {
    let rows: Vec<&str> = include_str!("xid.tsv")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    assert!(rows.len() > 100);
    for row in rows {
        let code = row.split('\t').next().unwrap().parse().unwrap();
        assert!(
            xid_entry(code).is_some_and(|entry| !entry.mnemonic.is_empty()),
            "{row}"
        );
    }
}

proptest! {
    #[test]
    fn no_log_makes_the_reader_panic(text in prop::collection::vec(any::<u8>(), 0..600)) {
        KernelLog::read(&text);
    }

    #[test]
    fn marks_with_arbitrary_ends_do_not_panic(
        mark in prop::sample::select(vec![
            "NVRM: Xid (PCI:", "nvidia-nvswitch0: SXid (PCI:", "NEURON_HW_ERR=", "NVRM: The NVIDIA GPU ", "mce: [Hardware Error]: ", "<", "6,1,2,-;", "[",
        ]),
        rest in "\\PC{0,80}",
    ) {
        KernelLog::read(format!("{mark}{rest}\n").as_bytes());
    }
}
