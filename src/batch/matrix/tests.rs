use super::*;
use crate::batch::test_folder;
use crate::post::embedding::search::Kind;
use crate::post::matrix::Values;

fn output(folder: &Path, rows: &[(&str, &str)]) -> PathBuf {
    let path = folder.join("out.jsonl");
    let line = |(id, data): &(&str, &str)| {
        format!(
            "{{\"id\":\"x\",\"custom_id\":\"{id}\",\"response\":{{\"status_code\":200,\
             \"request_id\":\"\",\"body\":{{\"data\":{data}}}}},\"error\":null}}\n"
        )
    };
    fs::write(&path, rows.iter().map(line).collect::<String>()).unwrap();
    path
}

fn plan(folder: &Path, text: &str, output: PathBuf) -> MatrixPlan {
    let plan = Plan::parse(text).unwrap();
    let device = Device::new(crate::cuda::Choice::Cpu);
    MatrixPlan { plan, output, matrix: folder.join("m.npy"), threads: 2, device }
}

const ROWS: [(&str, &str); 3] = [
    ("a", r#"[{"index":0,"embedding":[3,4,0,9]}]"#),
    ("none", "[]"),
    ("b", r#"[{"index":1,"embedding":[0,0,2,9]},{"index":0,"embedding":[0,-1,0,9]}]"#),
];

#[test]
fn a_matrix_has_the_rows_in_their_order_and_their_names() {
    let folder = test_folder("matrix");
    let output = output(&folder, &ROWS);
    let mut plan = plan(&folder, "normalize,truncate=3", output);
    assert_eq!(make(&plan).unwrap(), Made { rows: 3, dims: 3, topk: None });
    let matrix = Matrix::open(&plan.matrix).unwrap();
    assert_eq!((matrix.kind(), matrix.dims(), matrix.rows()), (Kind::F32, 3, 3));
    let wanted = vec![0.6, 0.8, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0];
    assert_eq!(matrix.read(0, 3).unwrap(), Values::F32(wanted));
    let ids = fs::read_to_string(ids_path(&plan.matrix)).unwrap();
    assert_eq!(
        ids,
        "{\"custom_id\":\"a\",\"index\":0}\n{\"custom_id\":\"b\",\"index\":0}\n\
         {\"custom_id\":\"b\",\"index\":1}\n"
    );
    // Its own nearest rows, by way of an int8 matrix.
    plan.plan = Plan::parse("normalize,truncate=3,quantize=int8").unwrap();
    let corpus = folder.join("corpus.npy");
    make(&MatrixPlan { matrix: corpus.clone(), ..plan.clone() }).unwrap();
    let topk = format!("truncate=3,topk=1:{}", corpus.display());
    plan.plan = Plan::parse(&topk).unwrap();
    let made = make(&plan).unwrap();
    let lines = fs::read_to_string(made.topk.unwrap()).unwrap();
    let nearest: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rows: Vec<_> = nearest.iter().map(|line| line["nearest"][0]["row"].as_u64()).collect();
    assert_eq!(rows, [Some(0), Some(1), Some(2)]);
    assert_eq!(nearest[2]["custom_id"], "b");
    // As lines.
    let matrix = folder.join("m.jsonl");
    plan.plan = Plan::parse("quantize=int8").unwrap();
    make(&MatrixPlan { matrix: matrix.clone(), ..plan }).unwrap();
    let lines = fs::read_to_string(&matrix).unwrap();
    assert_eq!(
        lines.lines().next(),
        Some(r#"{"custom_id":"a","index":0,"embedding":[42,56,0,127]}"#)
    );
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_is_no_row_of_the_matrix_is_named_and_nothing_half_is_left() {
    let folder = test_folder("matrix-faults");
    let good = ROWS[0];
    for (rows, text, says) in [
        (&[good, ("x", r#"[{"embedding":[1,2]}]"#)][..], "normalize", "line 2 (x)"),
        (&[good, ("x", r#"[{"embedding":[1,2,3,1e39]}]"#)], "normalize", "value 3 of embedding 0"),
        (&[good], "truncate=5", "truncated to 5"),
        (&[good, ("x", "7")], "normalize", "no answer of /v1/embeddings"),
        (&[good], "quantize=binary", "multiple of 8"),
        (&[good], "topk=3:/nowhere/c.npy", "/nowhere/c.npy"),
        (&[ROWS[1]], "normalize", "no embeddings"),
    ] {
        let plan = plan(&folder, text, output(&folder, rows));
        let error = make(&plan).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
        let left = fs::read_dir(&folder).unwrap().count();
        assert_eq!(left, 1, "only the output: {error}");
    }
    // A matrix that was cut off is not searched.
    let plan = plan(&folder, "normalize", output(&folder, &ROWS));
    make(&plan).unwrap();
    let file = File::options().write(true).open(&plan.matrix).unwrap();
    file.set_len(140).unwrap();
    let error = Matrix::open(&plan.matrix).unwrap_err().to_string();
    assert!(error.contains("has 140 bytes where its header says 176"), "{error}");
    file.set_len(60).unwrap();
    assert!(Matrix::open(&plan.matrix).unwrap_err().to_string().contains("ends too early"));
    fs::remove_dir_all(folder).unwrap();
}
