//! One output per release and kind of ending, written by us in the shape that the release's writer gives it.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

macro_rules! outputs {
    ($($name:ident = $file:literal;)*) => {
        $(const $name: &[u8] = include_bytes!(concat!("../../../../fixtures/outputs/dcgmi/", $file));)*
        const OUTPUTS: &[(&str, &[u8])] = &[$(($file, $name)),*];
    };
}

outputs! {
    V2_4_PASS = "2.4-r3-pass.json";
    V2_4_FAIL = "2.4-r2-nvlink-down.json";
    V2_4_RUNTIME_ERROR = "2.4-runtime-error.json";
    V3_0_PASS = "3.0-r1-pass.json";
    V3_0_FAIL = "3.0-r3-memory-fail.json";
    V3_1_PASS = "3.1-r2-pass.json";
    V3_1_FAIL = "3.1-r2-fail.json";
    V3_2_FAIL = "3.2-r2-fail.json";
    V3_3_0_PASS = "3.3.0-r2-pass.json";
    V3_3_0_FAIL = "3.3.0-r2-fail.json";
    V3_3_9_PASS = "3.3.9-r3-pass.json";
    V3_3_9_FAIL = "3.3.9-r3-fail.json";
    V3_3_NVVS = "3.3-nvvs.txt";
    V4_2_PASS = "4.2-r4-pass.json";
    V4_2_PERSISTENCE_OFF = "4.2-r1-persistence-off.json";
    V4_2_BANNER = "4.2-r1-banner.txt";
    V4_5_PASS = "4.5-r4-pass.json";
    V4_5_FAIL = "4.5-r4-fail.json";
    V4_5_RUNTIME_ERROR = "4.5-runtime-error.json";
    V4_5_ITERATIONS_PASS = "4.5-iterations-pass.json";
    V4_5_ITERATIONS_FAIL = "4.5-iterations-fail.json";
    V4_5_ITERATIONS_LOST = "4.5-iterations-lost.json";
}

const NO_HOSTENGINE: &[u8] =
    include_bytes!("../../../../fixtures/outputs/dcgmi/4.5-no-hostengine.txt");

/// All results that are not a plain pass, one a line: `memory gpu3 isolate 52`.
fn findings(output: &[u8]) -> Vec<String> {
    let diagnosis = read(output).unwrap();
    let bad = diagnosis
        .results
        .iter()
        .filter(|result| result.grade() != Grade::Pass);
    bad.map(|result| {
        let row = result
            .row
            .as_deref()
            .map(|row| format!("[{row}]"))
            .unwrap_or_default();
        let entity = match result.entity {
            Entity::Node => "node".to_owned(),
            Entity::Gpu(id) => format!("gpu{id}"),
            Entity::Cpu(id) => format!("cpu{id}"),
            Entity::Other { group, id } => format!("entity{group}.{id}"),
        };
        let ids = result
            .errors
            .iter()
            .map(|error| error.id.map_or(" -".to_owned(), |id| format!(" {id}")));
        let ids: String = ids.collect();
        format!(
            "{}{row} {entity} {}{ids}",
            result.test,
            result.grade().word()
        )
    })
    .collect()
}

#[test]
fn a_passing_run_of_every_release_has_no_findings() {
    let eud_skipped: Vec<String> = (0..8).map(|gpu| format!("eud gpu{gpu} skip")).collect();
    assert_eq!(findings(V2_4_PASS), [""; 0]);
    assert_eq!(findings(V3_0_PASS), [""; 0]);
    assert_eq!(findings(V3_1_PASS), [""; 0]);
    assert_eq!(findings(V3_3_0_PASS), [""; 0]);
    assert_eq!(findings(V3_3_9_PASS), eud_skipped[..2]);
    assert_eq!(findings(V4_2_PASS), eud_skipped[..2]);
    assert_eq!(findings(V4_5_PASS), eud_skipped);
    assert_eq!(findings(V4_2_BANNER), [""; 0]);
    assert_eq!(findings(V3_3_NVVS), [""; 0]);
}

#[test]
fn string_warnings_without_a_number_are_failures_of_unknown_gravity() {
    assert_eq!(
        findings(V2_4_FAIL),
        [
            "software[Persistence Mode] node unclassified -",
            "pcie gpu1 unclassified -"
        ]
    );
    assert_eq!(
        findings(V3_0_FAIL),
        [
            "memory gpu0 unclassified -",
            "diagnostic gpu0 skip",
            "targeted_stress gpu0 skip",
            "targeted_power gpu0 skip",
            "memory_bandwidth gpu0 skip",
        ]
    );
    assert_eq!(
        findings(V3_1_FAIL),
        [
            "software[Page Retirement/Row Remap] node unclassified -",
            "memory gpu1 skip"
        ]
    );
}

#[test]
fn a_number_beside_a_string_warning_is_judged_by_the_table() {
    assert_eq!(findings(V3_2_FAIL), ["pcie gpu1 triage 30"]);
}

#[test]
fn several_result_objects_of_a_deployment_row_are_one_result_with_several_errors() {
    assert_eq!(
        findings(V3_3_0_FAIL),
        [
            "software[Persistence Mode] node config 29 29",
            "memory gpu1 triage 66"
        ]
    );
}

#[test]
fn holes_misspelt_keys_and_cpus_of_3_3_9_are_read() {
    assert_eq!(
        findings(V3_3_9_FAIL),
        [
            "software[Persistence Mode] node config 29 29",
            "software[Environment Variables] node config 28",
            "software[Page Retirement/Row Remap] gpu1 reset 85",
            "memory gpu1 isolate 52",
            "eud gpu1 could_not_run 92",
            "cpu_eud cpu1 isolate 95",
            "targeted_power gpu1 triage 63",
        ]
    );
}

#[test]
fn a_warning_that_release_4_prints_as_fail_is_told_from_a_failure() {
    assert_eq!(findings(V4_2_PERSISTENCE_OFF), ["software gpu0 config 29"]);
}

#[test]
fn errors_that_the_summary_repeats_are_counted_once_and_its_own_are_kept() {
    assert_eq!(
        findings(V4_5_FAIL),
        [
            "software gpu2 isolate 126",
            "pcie gpu0 triage 14",
            "pcie node triage 100",
            "memory gpu1 could_not_run 56",
            "memory gpu3 isolate 52",
            "nccl_tests gpu0 not_run",
            "nccl_tests gpu1 not_run",
            "nccl_tests gpu2 not_run",
            "nccl_tests gpu3 not_run",
            "pulse_test node not_run",
            "targeted_stress gpu0 reset 950",
            "targeted_stress gpu1 unclassified 951",
            "eud gpu0 skip 117",
            "eud gpu1 skip 117",
            "eud gpu2 skip 117",
            "eud gpu3 skip 117",
        ]
    );
}

#[test]
fn versions_device_ids_and_serials_are_found_wherever_the_release_has_put_them() {
    let of = |output| {
        let diagnosis = read(output).unwrap();
        let serials: Vec<String> = diagnosis.serials.into_values().collect();
        (
            diagnosis.dcgm_version,
            diagnosis.driver_version,
            diagnosis.gpu_device_ids,
            serials,
        )
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(of(V3_0_PASS), (None, None, vec![], vec![]));
    let ids = |id: &str, count| vec![id.to_owned(); count];
    assert_eq!(
        of(V3_1_PASS),
        (some("3.1.8"), some("525.125.06"), ids("20b0", 2), vec![])
    );
    let serials = vec!["1650023000101".to_owned(), "1650023000102".to_owned()];
    assert_eq!(
        of(V3_3_9_PASS),
        (some("3.3.9"), some("535.183.01"), ids("2330", 2), serials)
    );
    let (version, driver, devices, serials) = of(V4_5_FAIL);
    assert_eq!((version, driver), (some("4.5.3"), some("580.95.05")));
    assert_eq!(devices, ids("2330", 4), "the switch is no GPU");
    assert_eq!(serials.len(), 4);
}

#[test]
fn a_blank_of_dcgm_is_no_value() {
    assert!(read(V4_2_PERSISTENCE_OFF).unwrap().serials.is_empty());
    let blank = |id: u64| {
        let text = format!(
            r#"{{"DCGM GPU Diagnostic":{{"test_categories":[{{"category":"Hardware","tests":[{{"name":"GPU Memory",
            "results":[{{"gpu_id":{id},"status":"Fail","warnings":[{{"warning":"w","error_id":{id},
            "error_severity":{id}}}]}}]}}]}}]}}}}"#
        );
        let result = read(text.as_bytes()).unwrap().results.remove(0);
        (result.entity, result.errors[0].id, result.grade())
    };
    assert_eq!(
        blank(0x7fff_ffff_ffff_fff2),
        (Entity::Node, None, Grade::Unclassified)
    );
    assert_eq!(
        blank(0x7fff_fff0),
        (Entity::Node, None, Grade::Unclassified)
    );
    assert_eq!(blank(6), (Entity::Gpu(6), Some(6), Grade::Reset));
}

#[test]
fn a_run_that_failed_as_a_whole_says_why() {
    let why = |output| read(output).unwrap().runtime_error.unwrap();
    assert!(why(V2_4_RUNTIME_ERROR).contains("homogeneous group"));
    assert!(why(V4_5_RUNTIME_ERROR).contains("already running"));
    assert_eq!(
        read(V4_5_RUNTIME_ERROR).unwrap().dcgm_version.as_deref(),
        Some("4.5.3")
    );
}

#[test]
fn repeated_runs_are_read_together_and_a_lost_one_is_not_passed_over() {
    let pass = read(V4_5_ITERATIONS_PASS).unwrap();
    assert_eq!((pass.results.len(), pass.runtime_error), (4, None));
    assert_eq!(findings(V4_5_ITERATIONS_FAIL), ["software gpu1 reset 85"]);
    assert_eq!(read(V4_5_ITERATIONS_FAIL).unwrap().runtime_error, None);
    let lost = read(V4_5_ITERATIONS_LOST).unwrap().runtime_error.unwrap();
    assert_eq!(
        lost,
        "iteration 2 left no document: The connection to the host engine is not valid any longer"
    );
}

#[test]
fn a_run_that_left_no_document_is_not_believed_to_have_passed() {
    let text = String::from_utf8(V4_5_ITERATIONS_LOST.to_vec()).unwrap();
    let text = text.replace(
        r#""Overall Result" : "Fail""#,
        r#""Overall Result" : "Pass""#,
    );
    assert!(read(text.as_bytes()).unwrap().runtime_error.is_some());
}

#[test]
fn a_test_that_failed_on_the_whole_while_every_gpu_passed_has_failed() {
    let text = String::from_utf8(V4_2_PASS.to_vec()).unwrap();
    let (before, after) = text.split_once("test_summary").unwrap();
    let after = after.replacen("Pass", "Fail", 1);
    assert_eq!(
        findings(format!("{before}test_summary{after}").as_bytes())[0],
        "software node unclassified"
    );
}

#[test]
fn an_overall_failure_that_no_result_accounts_for_is_told() {
    let text = String::from_utf8(V4_5_ITERATIONS_PASS.to_vec()).unwrap();
    let text = text.replace(
        r#""Overall Result" : "Pass""#,
        r#""Overall Result" : "Fail""#,
    );
    assert!(read(text.as_bytes()).unwrap().runtime_error.is_some());
}

#[test]
fn nothing_is_not_a_pass() {
    assert!(matches!(read(b""), Err(DcgmiError::Empty)));
    assert!(matches!(read(b" \n"), Err(DcgmiError::Empty)));
    let nothing_ran = |text: &str| matches!(read(text.as_bytes()), Err(DcgmiError::NothingRan));
    assert!(nothing_ran(r#"{"version":"3.3.9"}"#));
    assert!(nothing_ran(r#"{"DCGM Diagnostic":{}}"#));
    assert!(nothing_ran(r#"{"DCGM Diagnostic":{"version":"4.2.3"}}"#));
    assert!(nothing_ran(r#"{"DCGM Diagnostic":{"test_categories":[]}}"#));
    assert!(matches!(
        read(NO_HOSTENGINE),
        Err(DcgmiError::NoDocument { said }) if said.starts_with("Error: unable")
    ));
}

#[test]
fn another_document_is_refused() {
    let refused = |text: &str| matches!(read(text.as_bytes()), Err(DcgmiError::Shape { .. }));
    assert!(refused(
        r#"{"DCGM Multi-Node Diagnostic":"DCGM Multi-Node Diagnostic","hosts":[]}"#
    ));
    assert!(refused(r#"{"DCGM Diagnostic":"DCGM Diagnostic"}"#));
    assert!(refused(
        r#"{"DCGM Diagnostic":{},"DCGM GPU Diagnostic":{}}"#
    ));
    assert!(refused("{}"));
}

#[test]
fn a_result_that_stands_twice_is_refused() {
    let twice = r#"{"DCGM Diagnostic":{"test_categories":[{"category":"Hardware","tests":[{"name":"memory",
        "results":[{"entity_group_id":1,"entity_id":0,"status":"Fail","status":"Pass"}]}]}]}}"#;
    assert!(matches!(
        read(twice.as_bytes()),
        Err(DcgmiError::Damaged(_))
    ));
}

#[test]
fn a_status_word_of_no_release_is_refused() {
    let text = String::from_utf8(V4_2_PASS.to_vec()).unwrap();
    let text = text.replacen(r#""status" : "Pass""#, r#""status" : """#, 1);
    assert!(matches!(
        read(text.as_bytes()),
        Err(DcgmiError::Shape { at: "status", .. })
    ));
}

#[test]
fn an_output_cut_off_anywhere_is_an_error_or_the_whole() {
    // The run of eight GPUs is left out for its length; it has the shape of the failing one.
    for (file, output) in OUTPUTS
        .iter()
        .filter(|(file, _)| *file != "4.5-r4-pass.json")
    {
        let whole = read(output).unwrap();
        for length in 0..output.len() {
            if let Ok(part) = read(&output[..length]) {
                assert_eq!(part, whole, "{file} cut to {length} bytes");
            }
        }
    }
}

/// JSON in which DCGM's own keys and words are frequent.
fn json() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("DCGM Diagnostic"),
        Just("DCGM GPU Diagnostic"),
        Just("test_categories"),
        Just("category"),
        Just("tests"),
        Just("name"),
        Just("results"),
        Just("status"),
        Just("warnings"),
        Just("warning"),
        Just("info"),
        Just("gpu_id"),
        Just("gpu_ids"),
        Just("entity_group_id"),
        Just("entity_id"),
        Just("error_id"),
        Just("error_severity"),
        Just("test_summary"),
        Just("iterations"),
        Just("Overall Result"),
        Just("entity_groups"),
        Just("entities"),
        Just("metadata"),
        Just("runtime_error"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        (0_u64..40).prop_map(Value::from),
        prop_oneof![
            Just("Pass"),
            Just("Fail"),
            Just("Skip"),
            Just("0,1"),
            Just("Deployment"),
            Just("<<<NULL>>>")
        ]
        .prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6).prop_map(|fields| fields
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect()),
        ]
    })
}

/// Every place in `value`, depth first.
fn places(value: &mut Value) -> Vec<&mut Value> {
    match value {
        Value::Array(list) => list.iter_mut().flat_map(places).collect(),
        Value::Object(fields) => fields.values_mut().flat_map(places).collect(),
        leaf => vec![leaf],
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = read(&bytes);
    }

    #[test]
    fn no_json_makes_it_panic(value in json()) {
        let _ = read(value.to_string().as_bytes());
    }

    #[test]
    fn no_damaged_leaf_makes_it_panic_or_pass_with_nothing(
        file in 0..OUTPUTS.len(),
        place in any::<prop::sample::Index>(),
        leaf in json(),
    ) {
        let output = OUTPUTS[file].1;
        let start = output.iter().position(|&byte| byte == b'{').unwrap();
        let mut document: Value = serde_json::from_slice(&output[start..]).unwrap();
        let mut leaves = places(&mut document);
        *leaves.swap_remove(place.index(leaves.len())) = leaf;
        if let Ok(diagnosis) = read(document.to_string().as_bytes()) {
            prop_assert!(!diagnosis.results.is_empty() || diagnosis.runtime_error.is_some());
        }
    }

    /// `nvvs` writes further keys every release; none of them may change what is read.
    #[test]
    fn an_unknown_key_changes_nothing(file in 0..OUTPUTS.len(), value in json()) {
        let output = OUTPUTS[file].1;
        let text = String::from_utf8(output.to_vec()).unwrap();
        let with_key = text.replacen('{', &format!("{{\"a key of a later release\":{value},"), 1);
        prop_assert_eq!(read(with_key.as_bytes()).unwrap(), read(output).unwrap());
    }
}
