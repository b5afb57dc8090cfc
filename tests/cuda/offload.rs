//! Rows and tokens by way of `Offload` and the language model's sampler, on a card that is well,
//! that has no memory left, and that is lost while they are worked on.
//!
//! What loses it is real: a kernel that writes where nothing is, after which the driver refuses all
//! calls of the process. So this comes last.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cnse::backend::builtin::ngrams::Model;
use cnse::backend::builtin::sampler::{Language, Options, Sampler, Sequence};
use cnse::cuda::kernels::probe::PROBE;
use cnse::cuda::{Arguments, Choice, Device, Gpu, Grid, Lane, LaneBounds, Offload};
use cnse::post::embedding::search::{Hit, Kind, Search};
use cnse::post::matrix::{Matrix, Values, Writer};
use cnse::post::nearest::{Scan, look};
use cnse::post::plan::Plan;
use cnse::post::sampling::Params;
use cnse::post::threads::cores;
use cnse::prng::Prng;

const DIMS: usize = 768;
/// Tokens that a sequence's penalties look back on.
const PENALTY_WINDOW: usize = 64;
/// What is said when a card is given up.
const SAID: &str = "from now on the CPU does the card's work: ";

/// What was logged.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// The reasons that were said since it was last asked.
fn reasons() -> Vec<String> {
    let lines = std::mem::take(&mut *LINES.0.lock().unwrap());
    lines.iter().filter_map(|line| line.strip_prefix(SAID)).map(str::to_owned).collect()
}

/// A folder that goes when the test does.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn run() {
    log::set_logger(&LINES).expect("the only logger");
    log::set_max_level(log::LevelFilter::Info);
    let folder = Folder(std::env::temp_dir().join(format!("cnse-cuda-{}", std::process::id())));
    fs::create_dir_all(&folder.0).expect("a folder");
    let device = opened();
    let gpu = device.start().wait().clone().expect("it was opened");
    let work = Work::new(&folder.0);
    let begun = Instant::now();
    well(&device, &gpu, &work);
    println!("offload: rows, searches and tokens equal their twins ({:?})", begun.elapsed());
    out_of_memory(&work);
    lost(&device, &gpu, &work);
}

/// A device whose card is open.
fn opened() -> Device {
    let device = Device::new(Choice::Device(0));
    device.start().wait().as_ref().expect("a card");
    device
}

/// What is to be done, and what the twins make of it.
struct Work {
    rows: Vec<f32>,
    plans: Vec<(Plan, (Values, usize))>,
    corpora: Vec<(Matrix, Search, Vec<Vec<Hit>>)>,
}

impl Work {
    fn new(folder: &Path) -> Work {
        let mut prng = Prng::new(5);
        let rows: Vec<f32> = (0..12_345 * DIMS).map(|_| prng.normal() as f32).collect();
        let plans = ["normalize", "normalize,truncate=256,quantize=int8", "quantize=binary"];
        let plans = plans.map(|text| {
            let plan = Plan::parse(text).expect("a plan");
            let done = plan.transform(rows.clone(), DIMS, cores()).expect("rows that fit");
            (plan, done)
        });
        let corpora = [Kind::F32, Kind::Int8, Kind::Binary].map(|kind| {
            let plan = Plan { truncate: None, normalize: false, kind, topk: None };
            let (values, _) = plan.transform(rows.clone(), DIMS, cores()).expect("rows that fit");
            let path = folder.join(format!("{kind:?}.npy"));
            let mut writer = Writer::create(&path, kind, DIMS).expect("a file");
            // Each row eight times: ties, whose order must be that of their numbers.
            for _ in 0..8 {
                writer.append(values.rows()).expect("room on the disk");
            }
            writer.publish().expect("room on the disk");
            let corpus = Matrix::open(&path).expect("what was just written");
            let queries = &rows[..40 * DIMS];
            let search = Search::new(queries, DIMS, kind, 33, cores()).expect("queries");
            let mut twin = search.clone();
            look(&corpus, 0, corpus.rows(), &mut twin).expect("rows");
            (corpus, search, twin.finish())
        });
        Work { rows, plans: plans.into(), corpora: corpora.into() }
    }

    /// All of it by way of `offload`, held against the twins.
    fn compare(&self, offload: &mut Offload, what: &str) {
        for (plan, wanted) in &self.plans {
            let done = offload.transform(plan, self.rows.clone(), DIMS, cores());
            assert!(done.expect("rows that fit") == *wanted, "{what}: {plan:?}");
        }
        for (corpus, search, wanted) in &self.corpora {
            let found = offload.scan(corpus, search.clone()).expect("rows").finish();
            assert!(found == *wanted, "{what}: {:?}", corpus.kind());
        }
    }
}

/// The tokens of `count` sequences, the next of each at every call.
fn sequences(device: &Device, count: u64) -> impl FnMut() -> Vec<Option<u32>> + use<> {
    let language = Language::new(Model::new(32_000), device.clone());
    let prompt = language.model.vocabulary().tokenize(b"tell me of the river");
    let sampler = Rc::new(RefCell::new(Sampler::new(language)));
    let mut sequences: Vec<Sequence> = (0..count)
        .map(|stream| {
            let penalty = 1.0 + stream as f32 / 50.0;
            let params = Params { top_k: 40, top_p: 0.95, seed: 3, stream, ..Params::default() };
            let params = Params { repetition_penalty: penalty, temperature: 0.8, ..params };
            let options = Options {
                params,
                bias: vec![(300, 2.0)],
                penalty_window: PENALTY_WINDOW,
                top: Some(2),
            };
            Sequence::new(&sampler, prompt.clone(), options)
        })
        .collect();
    move || {
        let next = |sequence: &mut Sequence| sequence.draw().expect("a token").token;
        sequences.iter_mut().filter(|sequence| !sequence.ended).map(next).collect()
    }
}

/// A card that works: the bits of the twins, by the card, and no driver's memory once it is warm.
fn well(device: &Device, gpu: &Arc<Gpu>, work: &Work) {
    let mut offload = Offload::new(device);
    work.compare(&mut offload, "a card that is well");
    let (warm, used) = (gpu.allocations(), gpu.usage());
    assert!(used.kernel_ms > 0.0 && used.transfer_ms > 0.0, "the card did it: {used:?}");
    for _ in 0..3 {
        work.compare(&mut offload, "a card that is warm");
    }
    assert_eq!(gpu.allocations(), warm, "memory was asked of the driver in the steady state");
    let (mut card, mut cpu) = (sequences(device, 24), sequences(&Device::new(Choice::Cpu), 24));
    // What is edited grows with each token until the windows of penalties are full.
    (0..PENALTY_WINDOW + 8).for_each(|step| assert_eq!(card(), cpu(), "step {step}"));
    let warm = gpu.allocations();
    (0..40).for_each(|step| assert_eq!(card(), cpu(), "step {step}, warm"));
    assert_eq!(gpu.allocations(), warm, "memory was asked of the driver while tokens were drawn");
    assert!(reasons().is_empty(), "nothing failed");
}

fn out_of_memory(work: &Work) {
    // A corpus streams through two blocks: it may be larger than what cnse may take.
    let device = opened();
    let small = device.start().wait().clone().expect("it was opened");
    small.set_budget(240 << 20);
    assert!(work.corpora[0].0.rows() * DIMS as u64 * 4 > small.budget() as u64);
    work.compare(&mut Offload::new(&device), "a card smaller than the corpus");
    assert!(reasons().is_empty() && small.usage().kernel_ms > 0.0);
    let device = opened();
    let own = device.start().wait().clone().expect("it was opened");
    own.set_budget(0);
    let mut offload = Offload::new(&device);
    work.compare(&mut offload, "a card without memory");
    let said = reasons();
    assert!(said.len() == 1 && said[0].contains("no room for"), "{said:?}");
    // Memory that ends under way: the feeder's blocks do not fit.
    let device = opened();
    let own = device.start().wait().clone().expect("it was opened");
    own.set_budget(40 << 20);
    work.compare(&mut Offload::new(&device), "a card with little memory");
    let said = reasons();
    assert!(said.len() == 1 && said[0].contains("no room for"), "{said:?}");
    println!("out of memory: {}", said[0]);
}

fn lost(device: &Device, gpu: &Arc<Gpu>, work: &Work) {
    let mut offload = Offload::new(device);
    work.compare(&mut offload, "before the card is lost");
    let (mut card, mut cpu) = (sequences(device, 24), sequences(&Device::new(Choice::Cpu), 24));
    (0..8).for_each(|step| assert_eq!(card(), cpu(), "step {step}"));
    lose(gpu);
    work.compare(&mut offload, "a card that is lost");
    (0..40).for_each(|step| assert_eq!(card(), cpu(), "step {step} after the card"));
    let said = reasons();
    assert_eq!(said.len(), 1, "{said:?}");
    println!("lost: {}", said[0]);
}

/// Writes where nothing is.
#[allow(unsafe_code)]
fn lose(gpu: &Arc<Gpu>) {
    let lane = Lane::open(gpu, &LaneBounds::default()).expect("a lane");
    let from = lane.upload(&[1.0f32; 256]).expect("an upload");
    let probe = gpu.function(&PROBE, "probe").expect("a kernel");
    let nowhere = 0x10u64;
    let arguments = Arguments::new().with(from.at()).with(nowhere).with(256u32).with(0u32);
    // SAFETY: none: the kernel writes to an address that is not the process', which the card
    // refuses. That is what is wanted.
    let launched = unsafe { lane.stream().launch(&probe, Grid::line(1, 256), &arguments) };
    let error = launched.and_then(|()| lane.synchronize()).expect_err("it wrote nowhere");
    assert!(error.is_fatal(), "{error}");
}
