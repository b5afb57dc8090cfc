//! What launches, transfers and allocations cost, what overlap hides, and that a loop that is warm
//! asks the driver for no memory.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use super::figures::Figure;
use super::measure::{Times, host};
use crate::cuda::kernels::probe::Probe;
use crate::cuda::memory::Unpooled;
use crate::cuda::{Error, Gpu, Lane, LaneBounds};

/// Samples of what takes microseconds.
const SAMPLES: usize = 401;
/// Samples of what takes milliseconds.
const SAMPLES_LONG: usize = 21;
/// Sizes of transfers, in bytes: a row of tokens to a batch of logits.
const SIZES: [usize; 4] = [4 << 10, 256 << 10, 4 << 20, 64 << 20];
/// Bytes that are copied while a kernel runs.
const OVERLAP_BYTES: usize = 64 << 20;
/// Turns of the loop that must allocate nothing.
const TURNS: usize = 2_000;
/// Allocations of one sample, where each is too short for the clock.
const ALLOCATIONS: usize = 1_000;

/// Measures all of them.
///
/// # Errors
/// `OutOfMemory`, `NoPinned`, or what the driver says.
pub fn run(gpu: &Arc<Gpu>) -> Result<Vec<Figure>, Error> {
    let bounds = LaneBounds {
        device_slab_bytes: 160 << 20,
        pinned_slab_bytes: 160 << 20,
        ..LaneBounds::default()
    };
    let lane = Lane::open(gpu, &bounds)?;
    let probe = Probe::load(gpu)?;
    let mut figures = launches(&lane, &probe)?;
    figures.extend(transfers(&lane)?);
    figures.extend(results(&lane, &probe)?);
    figures.extend(overlap(gpu, &lane, &probe)?);
    figures.extend(allocations(gpu, &lane)?);
    figures.push(steady(gpu, &lane, &probe)?);
    Ok(figures)
}

fn launches(lane: &Lane, probe: &Probe) -> Result<Vec<Figure>, Error> {
    let from = lane.upload(&[1.0f32; 256])?;
    let mut to = lane.device::<f32>(256)?;
    let mut turn = 0;
    let call = host(SAMPLES, || {
        // The queue is emptied now and then, outside of most samples.
        turn += 1;
        if turn % 64 == 0 {
            lane.synchronize()?;
        }
        probe.copy(lane, &from, &mut to, 0)
    })?;
    lane.synchronize()?;
    let waited = host(SAMPLES, || {
        probe.copy(lane, &from, &mut to, 0)?;
        lane.synchronize()
    })?;
    let in_graph =
        lane.time_graph(64, SAMPLES_LONG, 2.0, |_| probe.copy(lane, &from, &mut to, 0))?;
    let in_graph = Times::new(in_graph.into_iter().map(|ms| ms * 1e3).collect());
    Ok(vec![
        Figure::host("launch", "the call alone", 0, call),
        Figure::host("launch", "and wait", 0, waited),
        Figure::host("launch", "in a graph of 64", 0, in_graph),
    ])
}

fn transfers(lane: &Lane) -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    for bytes in SIZES {
        let samples = if bytes > 1 << 20 { SAMPLES_LONG } else { SAMPLES };
        let mut pageable = vec![1u8; bytes];
        let mut pinned = lane.pinned::<u8>(bytes)?;
        pinned.fill(1);
        let mut device = lane.device::<u8>(bytes)?;
        let times = [
            ("pageable to card", host(samples, || lane.upload_and_wait(&pageable, &mut device))?),
            ("pinned to card", host(samples, || lane.upload_and_wait(&pinned, &mut device))?),
            (
                "staged to card",
                host(samples, || {
                    lane.upload_to(&pageable, &mut device)?;
                    lane.synchronize()
                })?,
            ),
            ("card to pinned", host(samples, || lane.download_to(&device, &mut pinned))?),
            ("card to pageable", host(samples, || lane.download_to(&device, &mut pageable))?),
        ];
        let shape = size(bytes);
        figures.extend(
            times.into_iter().map(|(name, times)| Figure::host(name, &shape, bytes, times)),
        );
        lane.synchronize()?;
    }
    Ok(figures)
}

/// A kernel's small result on the host: copied, or written there by the kernel.
fn results(lane: &Lane, probe: &Probe) -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    for count in [1usize, 256, 4096] {
        let from = lane.upload(&vec![1.0f32; count])?;
        let mut to = lane.device::<f32>(count)?;
        let mut pinned = lane.pinned::<f32>(count)?;
        let copied = host(SAMPLES, || {
            probe.copy(lane, &from, &mut to, 0)?;
            lane.download_to(&to, &mut pinned)
        })?;
        let mapped = host(SAMPLES, || probe.copy_to_host(lane, &from, &mut pinned))?;
        let shape = size(4 * count);
        figures.push(Figure::host("kernel, then copy", &shape, 4 * count, copied));
        figures.push(Figure::host("kernel to mapped memory", &shape, 4 * count, mapped));
    }
    Ok(figures)
}

/// A copy to the card and a kernel, one after the other and side by side.
fn overlap(gpu: &Arc<Gpu>, lane: &Lane, probe: &Probe) -> Result<Vec<Figure>, Error> {
    let bounds = LaneBounds {
        device_slab_bytes: 2 * OVERLAP_BYTES,
        pinned_slab_bytes: 2 * OVERLAP_BYTES,
        ..LaneBounds::default()
    };
    let copier = Lane::open(gpu, &bounds)?;
    let pinned = copier.pinned::<u8>(OVERLAP_BYTES)?;
    let mut device = copier.device::<u8>(OVERLAP_BYTES)?;
    let from = lane.upload(&vec![1.0f32; 1 << 20])?;
    let mut to = lane.device::<f32>(1 << 20)?;
    // A kernel that takes about as long as the copy: the hardest case to hide.
    let copy_us = host(SAMPLES_LONG, || copier.upload_and_wait(&pinned, &mut device))?.median();
    let of_turns = |turns: u32, to: &mut _| lane.time(|| probe.copy(lane, &from, to, turns));
    of_turns(1_000, &mut to)?;
    let turn_us = of_turns(20_000, &mut to)? * 1e3 / 20_000.0;
    let turns = (copy_us / turn_us).clamp(1.0, 1e9) as u32;
    let mut pinned = Some(pinned);
    // In turn, so that what drifts drifts in all of them.
    let mut samples: [Vec<f64>; 4] = Default::default();
    for _ in 0..SAMPLES_LONG {
        for (kind, samples) in samples.iter_mut().enumerate() {
            let begun = Instant::now();
            let (copies, computes, is_apart) = [
                (true, false, false),
                (false, true, false),
                (true, true, true),
                (true, true, false),
            ][kind];
            let block = pinned.take().expect("it comes back each time");
            let landing =
                if copies { Ok(copier.begin_upload(block, &mut device)?) } else { Err(block) };
            if is_apart {
                copier.stream().synchronize()?;
            }
            if computes {
                probe.copy(lane, &from, &mut to, turns)?;
            }
            pinned = Some(match landing {
                Ok(landing) => landing.wait()?,
                Err(block) => block,
            });
            lane.synchronize()?;
            samples.push(begun.elapsed().as_secs_f64() * 1e6);
        }
    }
    let [copy, compute, off, on] = samples.map(Times::new);
    let shorter = copy.median().min(compute.median());
    let hidden = (off.median() - on.median()) / shorter;
    let shape = format!("{} to the card", size(OVERLAP_BYTES));
    Ok(vec![
        Figure::host("overlap: copy alone", &shape, OVERLAP_BYTES, copy),
        Figure::host("overlap: kernel alone", &shape, 0, compute),
        Figure::host("overlap off", &shape, 0, off),
        Figure::host("overlap on", &shape, 0, on).with("hidden", hidden),
    ])
}

fn allocations(gpu: &Arc<Gpu>, lane: &Lane) -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    for bytes in [4 << 10, 256 << 10, 4 << 20, 64 << 20] {
        let shape = size(bytes);
        let pooled = host(SAMPLES_LONG, || {
            for _ in 0..ALLOCATIONS {
                black_box(lane.device::<u8>(black_box(bytes))?);
            }
            Ok(())
        })?;
        figures.push(Figure::host("pool: take and give", &shape, 0, pooled.each(ALLOCATIONS)));
        let driver = host(SAMPLES_LONG, || Unpooled::open(gpu, bytes).map(drop))?;
        figures.push(Figure::host("cuMemAlloc and cuMemFree", &shape, 0, driver));
    }
    Ok(figures)
}

/// A loop of uploads, kernels and downloads of changing sizes.
fn steady(gpu: &Arc<Gpu>, lane: &Lane, probe: &Probe) -> Result<Figure, Error> {
    let host_side = vec![1.0f32; 1 << 16];
    let turn = |turn: usize| {
        let count = 1 + turn * 7919 % host_side.len();
        let from = lane.upload(&host_side[..count])?;
        let mut to = lane.device::<f32>(count)?;
        probe.copy(lane, &from, &mut to, 0)?;
        lane.download(&to).map(drop)
    };
    (0..TURNS).try_for_each(turn)?;
    let (before, begun) = (gpu.allocations(), Instant::now());
    let mut samples = Vec::with_capacity(TURNS);
    for index in 0..TURNS {
        let begun = Instant::now();
        turn(index)?;
        samples.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    let asked = gpu.allocations() - before;
    let figure = Figure::host("steady state", &format!("{TURNS} turns"), 0, Times::new(samples));
    let wall_ms = begun.elapsed().as_secs_f64() * 1e3;
    Ok(figure.with("allocations", asked as f64).with("wall_ms", wall_ms))
}

fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}
