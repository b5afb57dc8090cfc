//! One row: the definition of `sampling`, step by step, in whole passes that vectorise.

use super::{Batch, Refusal, Row, Sampled};
use crate::post::philox;
use crate::post::weight::{self, BELOW, BINS};

/// Logits that are turned into bins and masses at once: their arrays stay in the first cache.
const BLOCK: usize = 256;
/// Draws from a whole edge, before what is kept of it is found out.
const DRAWS: u32 = 4;

/// Samples the rows from `first` on.
pub(super) fn sample_rows(
    batch: &Batch,
    rows: &[Row],
    first: usize,
) -> Vec<Result<Sampled, Refusal>> {
    let mut scratch = Scratch::default();
    let sample = |(i, row): (usize, &Row)| {
        let at = (first + i) * batch.vocab;
        scratch.logits.clear();
        batch.logits.widen(at, at + batch.vocab, &mut scratch.logits);
        let edits = batch.edits.get(first + i).map_or(&[][..], Vec::as_slice);
        for edit in edits {
            let logit = &mut scratch.logits[edit.token as usize];
            *logit = row.edit(*logit, edit);
        }
        sample_row(row, &mut scratch, batch.top_n, batch.entropy)
    };
    rows.iter().enumerate().map(sample).collect()
}

/// What one row needs and the next one uses again.
#[derive(Default)]
struct Scratch {
    /// Edited logits.
    logits: Vec<f32>,
    /// Bins below the top one, or `BELOW`.
    bins: Vec<u8>,
}

/// A row whose bins are known.
struct Binned<'a> {
    row: &'a Row,
    logits: &'a [f32],
    bins: &'a [u8],
    /// The largest logit's octave.
    octave: i32,
    /// The largest logit, scaled.
    scaled_max: f32,
    /// Sums of masses, of moments, and counts, for each bin.
    masses: [u64; BINS],
    moments: [u64; BINS],
    counts: [u32; BINS],
    /// What each bin weighs.
    weights: [u64; BINS],
}

/// Where a bin is cut: what is kept of it is in order up to this logit.
#[derive(Clone, Copy)]
struct Cut {
    /// Largest first, then lowest index first: `!key` above, index below.
    last: u64,
    /// Mass that is kept.
    mass: u64,
}

/// What is kept of a row: all above the edge, and of the edge what all three rules keep.
struct Kept {
    edge: usize,
    /// Top-k's or top-p's cut, where it is in the edge.
    cut: Option<Cut>,
    /// Min-p's, likewise.
    scaled_min: f32,
}

fn sample_row(
    row: &Row,
    scratch: &mut Scratch,
    top_n: usize,
    entropy: bool,
) -> Result<Sampled, Refusal> {
    let largest = largest(&scratch.logits)?;
    let scaled_max = largest * row.scale;
    if scaled_max.abs() > weight::SCALED_MAX {
        return Err(Refusal::OutOfRange);
    }
    let binned = Binned::new(row, &scratch.logits, &mut scratch.bins, scaled_max, entropy);
    let kept = binned.keep();
    let token = binned.draw(&kept);
    let total: u64 = binned.weights.iter().sum();
    let ln_total = weight::ln_weight(total);
    let ln_probability = |token: u32| {
        let scaled = scratch.logits[token as usize] * row.scale;
        (weight::ln_scaled(scaled, binned.octave) - ln_total) as f32
    };
    Ok(Sampled {
        token,
        log_probability: ln_probability(token),
        entropy: entropy.then(|| binned.entropy(total) as f32),
        top: binned.top(top_n).map(|token| (token, ln_probability(token))).collect(),
    })
}

/// The largest logit, if the row may be sampled.
fn largest(logits: &[f32]) -> Result<f32, Refusal> {
    let (mut lanes, mut is_nan) = ([f32::NEG_INFINITY; 16], [false; 16]);
    let (blocks, rest) = logits.as_chunks::<16>();
    for block in blocks {
        for lane in 0..16 {
            lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
            is_nan[lane] |= block[lane].is_nan();
        }
    }
    let largest =
        lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let first = |is: fn(f32) -> bool| logits.iter().position(|&x| is(x)).map(|i| i as u32);
    if is_nan.contains(&true) || rest.iter().any(|x| x.is_nan()) {
        return Err(Refusal::Nan(first(f32::is_nan).expect("one was seen")));
    }
    if largest == f32::INFINITY {
        return Err(Refusal::Infinite(first(|x| x == f32::INFINITY).expect("one was seen")));
    }
    if largest == f32::NEG_INFINITY {
        return Err(Refusal::AllMasked);
    }
    Ok(largest)
}

impl<'a> Binned<'a> {
    fn new(
        row: &'a Row,
        logits: &'a [f32],
        bins: &'a mut Vec<u8>,
        scaled_max: f32,
        with_moments: bool,
    ) -> Binned<'a> {
        let octave = weight::bin(scaled_max) >> 3;
        let top = octave * 8 + 7;
        bins.clear();
        bins.resize(logits.len(), BELOW);
        let mut sums = [[0u64; 3]; BINS + 1];
        for (block, into) in logits.chunks(BLOCK).zip(bins.chunks_mut(BLOCK)) {
            let (mut masses, mut moments) = ([0u32; BLOCK], [0u32; BLOCK]);
            for (i, &x) in block.iter().enumerate() {
                let y = x * row.scale;
                into[i] = (top - weight::bin(y)).min(i32::from(BELOW)) as u8;
                masses[i] = weight::mass(y);
            }
            if with_moments {
                for (moment, &x) in moments.iter_mut().zip(block) {
                    *moment = weight::moment(x * row.scale);
                }
            }
            for (i, &bin) in into.iter().enumerate() {
                let sum = &mut sums[usize::from(bin)];
                sum[0] += u64::from(masses[i]);
                sum[1] += u64::from(moments[i]);
                sum[2] += 1;
            }
        }
        Binned {
            row,
            logits,
            bins,
            octave,
            scaled_max,
            masses: std::array::from_fn(|t| sums[t][0]),
            moments: std::array::from_fn(|t| sums[t][1]),
            counts: std::array::from_fn(|t| sums[t][2] as u32),
            weights: std::array::from_fn(|t| weight::weigh(t, sums[t][0])),
        }
    }

    /// Elements of one bin, in index order.
    fn elements(&self, t: usize) -> impl Iterator<Item = u32> {
        let blocks = self.bins.chunks(BLOCK).enumerate();
        let full = blocks.filter(move |(_, block)| block.iter().any(|&b| usize::from(b) == t));
        full.flat_map(move |(number, block)| {
            let inside = block.iter().enumerate().filter(move |(_, b)| usize::from(**b) == t);
            inside.map(move |(i, _)| (number * BLOCK + i) as u32)
        })
    }

    fn mass(&self, index: u32) -> u64 {
        u64::from(weight::mass(self.logits[index as usize] * self.row.scale))
    }

    /// Place in the order, among those of one bin.
    fn place(&self, index: u32) -> u64 {
        u64::from(!weight::key(self.logits[index as usize])) << 32 | u64::from(index)
    }

    /// The shortest prefix of a bin's order whose sum is `need` or more.
    fn cut(&self, t: usize, need: u64, measure: impl Fn(u64) -> u64) -> Cut {
        let mut order: Vec<u64> = self.elements(t).map(|index| self.place(index)).collect();
        order.sort_unstable();
        let (mut sum, mut mass) = (0, 0);
        for last in order {
            let own = self.mass(last as u32);
            mass += own;
            sum += measure(own);
            if sum >= need {
                return Cut { last, mass };
            }
        }
        unreachable!("a bin holds what is cut in it")
    }

    fn keep(&self) -> Kept {
        let mut edge = self.weights.iter().rposition(|&w| w > 0).expect("the largest weighs");
        let (mut cut, mut kept) = (None, self.weights.iter().sum::<u64>());
        let k = u64::from(self.row.top_k);
        if let Some((t, above)) = first_reaching(&self.counts.map(u64::from), k) {
            let cut_here = self.cut(t, k - above, |_| 1);
            kept = self.weights[..t].iter().sum::<u64>() + weight::weigh(t, cut_here.mass);
            (edge, cut) = (t, Some(cut_here));
        }
        if self.row.top_p < 1 << 32 {
            let goal = (u128::from(kept) * u128::from(self.row.top_p)).div_ceil(1 << 32) as u64;
            let (t, above) = first_reaching(&self.weights, goal).expect("it is a part of the sum");
            let need = weight::unweigh(t, goal - above);
            (edge, cut) = (t, Some(self.cut(t, need, |mass| mass)));
        }
        let scaled_min = self.scaled_max + self.row.min_p;
        let t = self.octave * 8 + 7 - weight::bin(scaled_min);
        match (t as usize).cmp(&edge) {
            std::cmp::Ordering::Less => Kept { edge: t as usize, cut: None, scaled_min },
            std::cmp::Ordering::Equal => Kept { edge, cut, scaled_min },
            std::cmp::Ordering::Greater => Kept { edge, cut, scaled_min: f32::NEG_INFINITY },
        }
    }

    /// Whether an element of the edge is kept.
    fn is_kept(&self, kept: &Kept, index: u32) -> bool {
        let scaled = self.logits[index as usize] * self.row.scale;
        kept.cut.is_none_or(|cut| self.place(index) <= cut.last) && scaled >= kept.scaled_min
    }

    fn draw(&self, kept: &Kept) -> u32 {
        for attempt in 0..DRAWS {
            let token = self.draw_once(kept.edge, self.masses[kept.edge], attempt, |_| true);
            let is_above = usize::from(self.bins[token as usize]) < kept.edge;
            if is_above || self.is_kept(kept, token) {
                return token;
            }
        }
        let inside = self.elements(kept.edge).filter(|&index| self.is_kept(kept, index));
        let mass = inside.map(|index| self.mass(index)).sum();
        self.draw_once(kept.edge, mass, DRAWS, |index| self.is_kept(kept, index))
    }

    /// Draws from the bins above `edge`, and from those of `edge` that are `allowed`, which have
    /// this `mass`.
    fn draw_once(
        &self,
        edge: usize,
        mass: u64,
        attempt: u32,
        allowed: impl Fn(u32) -> bool,
    ) -> u32 {
        let above: u64 = self.weights[..edge].iter().sum();
        let (a, b) = philox::draw(self.row.seed, self.row.stream, self.row.step, attempt);
        let point = philox::below(a, above + weight::weigh(edge, mass));
        let bin = first_reaching(&self.weights[..edge], point + 1).map_or(edge, |(t, _)| t);
        let mut rest = philox::below(b, if bin == edge { mass } else { self.masses[bin] });
        for index in self.elements(bin).filter(|&index| bin < edge || allowed(index)) {
            let own = self.mass(index);
            if rest < own {
                return index;
            }
            rest -= own;
        }
        unreachable!("the masses of a bin are its sum")
    }

    /// The first `n` of the order.
    fn top(&self, n: usize) -> impl Iterator<Item = u32> {
        let (mut order, mut wanted) = (Vec::new(), n);
        for t in 0..BINS {
            if wanted == 0 {
                break;
            }
            let mut bin: Vec<u64> = self.elements(t).map(|index| self.place(index)).collect();
            bin.sort_unstable();
            bin.truncate(wanted);
            wanted -= bin.len();
            order.extend(bin);
        }
        order.into_iter().map(|place| place as u32)
    }

    /// In nats: the logarithm of the sum, less the mean of the weights' logarithms. The mean is
    /// taken over distances from the top bin's middle, in bins.
    fn entropy(&self, total: u64) -> f64 {
        let distance = |t: usize| {
            let weighed = self.weights[t];
            let moment = weight::weigh(t, self.moments[t]);
            ((weighed >> 10) * t as u64 + (weighed >> 11)) as i64 - (moment >> 10) as i64
        };
        let sum: i64 = (0..BINS).map(distance).sum();
        let mean = sum as f64 / (total as f64 * (1.0 / 1024.0));
        weight::ln_weight(total) - (0.875 - mean * 0.125) * std::f64::consts::LN_2
    }
}

/// The first place at which the running sum is `goal` or more, and the sum before it.
fn first_reaching(values: &[u64], goal: u64) -> Option<(usize, u64)> {
    let mut sum = 0;
    for (t, &value) in values.iter().enumerate() {
        if sum + value >= goal {
            return Some((t, sum));
        }
        sum += value;
    }
    None
}
