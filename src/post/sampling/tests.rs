//! The twin against a plain reference: sorted, summed and compared in f64.

use proptest::prelude::*;

use super::*;
use crate::prng::Prng;

/// What may be drawn and how likely it is, from the definition's words: probabilities in f64, in
/// order of logits; `slack` tells how near to a threshold a sum may come before the two may differ.
fn reference(logits: &[f32], params: &Params, edits: &[Edit]) -> Vec<(u32, f64)> {
    let row = params.check(0).unwrap();
    let mut logits = logits.to_vec();
    for edit in edits {
        logits[edit.token as usize] = row.edit(logits[edit.token as usize], edit);
    }
    let greedy = params.temperature == 0.0;
    let temperature = if greedy { 1.0 } else { f64::from(params.temperature) };
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    let largest = f64::from(logits[order[0] as usize]);
    let weigh = |token: u32| ((f64::from(logits[token as usize]) - largest) / temperature).exp();
    let k = if greedy { 1 } else { params.top_k as usize };
    order.truncate(if k == 0 { usize::MAX } else { k });
    let top_k: f64 = order.iter().map(|&token| weigh(token)).sum();
    let mut sum = 0.0;
    if params.top_p < 1.0 && !greedy {
        let goal = f64::from(params.top_p) * top_k;
        let count = order.iter().take_while(|&&token| {
            let before = sum;
            sum += weigh(token);
            before < goal
        });
        let count = count.count();
        order.truncate(count);
    }
    order.retain(|&token| greedy || weigh(token) >= f64::from(params.min_p));
    let kept: f64 = order.iter().map(|&token| weigh(token)).sum();
    order.into_iter().map(|token| (token, weigh(token) / kept)).collect()
}

fn one(logits: &[f32], params: Params) -> Result<Sampled, Refusal> {
    one_edited(logits, params, Vec::new(), 0)
}

fn one_edited(
    logits: &[f32],
    params: Params,
    edits: Vec<Edit>,
    top_n: usize,
) -> Result<Sampled, Refusal> {
    let batch = Batch {
        logits: Logits::F32(logits),
        vocab: logits.len(),
        params: &[params],
        edits: &[edits],
        top_n,
        entropy: true,
    };
    sample(&batch, 1).unwrap().remove(0)
}

fn gaussian(count: usize, scale: f64, seed: u64) -> Vec<f32> {
    let mut prng = Prng::new(seed);
    (0..count).map(|_| (prng.normal() * scale) as f32).collect()
}

fn zipf(count: usize, seed: u64) -> Vec<f32> {
    let mut logits: Vec<f32> = (1..=count).map(|rank| -1.6 * (rank as f32).ln()).collect();
    let mut prng = Prng::new(seed);
    for i in (1..count).rev() {
        logits.swap(i, prng.below(i as u64 + 1) as usize);
    }
    logits
}

/// How far, in standard deviations, chi squared of `draws` independent draws against the reference
/// lies above its mean (Wilson and Hilferty, 1931); tokens with fewer than 8 expected are counted
/// together.
fn chi_squared(logits: &[f32], params: Params, edits: &[Edit], draws: u32) -> f64 {
    let expected = reference(logits, &params, edits);
    let mut place = vec![usize::MAX; logits.len()];
    for (i, &(token, _)) in expected.iter().enumerate() {
        place[token as usize] = i;
    }
    let mut counts = vec![0u32; expected.len()];
    for step in 0..draws {
        let drawn = one_edited(logits, Params { step, ..params }, edits.to_vec(), 0).unwrap();
        let place = place[drawn.token as usize];
        assert!(place < counts.len(), "token {} is not kept", drawn.token);
        counts[place] += 1;
    }
    let (mut sum, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
    for (&count, &(_, p)) in counts.iter().zip(&expected) {
        let (count, mean) = (f64::from(count), p * f64::from(draws));
        if mean < 8.0 {
            rare = (rare.0 + count, rare.1 + mean);
        } else {
            sum += (count - mean).powi(2) / mean;
            cells += 1.0;
        }
    }
    if rare.1 >= 8.0 {
        sum += (rare.0 - rare.1).powi(2) / rare.1;
        cells += 1.0;
    }
    if cells < 2.0 {
        return 0.0;
    }
    let (ratio, spread): (f64, f64) = (sum / (cells - 1.0), 2.0 / (9.0 * (cells - 1.0)));
    (ratio.cbrt() - (1.0 - spread)) / spread.sqrt()
}

#[test]
fn frequencies_are_the_probabilities() {
    let plain = Params::default();
    let cases = [
        ("plain", plain),
        ("hot", Params { temperature: 2.5, ..plain }),
        ("cold", Params { temperature: 0.3, ..plain }),
        ("top-k", Params { top_k: 20, ..plain }),
        ("top-p", Params { top_p: 0.9, ..plain }),
        ("both", Params { top_k: 50, top_p: 0.7, ..plain }),
        ("min-p", Params { min_p: 0.2, ..plain }),
        ("all", Params { top_k: 80, top_p: 0.95, min_p: 0.05, temperature: 0.8, ..plain }),
    ];
    for (name, params) in cases {
        for (shape, logits) in [("flat", gaussian(120, 1.0, 7)), ("peaked", zipf(120, 8))] {
            let edits = Edit::list(&[3, 5, 5, 9], &[(7, 1.5), (11, f32::NEG_INFINITY)]);
            let params = Params {
                seed: 11,
                repetition_penalty: 1.3,
                presence_penalty: 0.2,
                frequency_penalty: 0.1,
                ..params
            };
            let chi = chi_squared(&logits, params, &edits, 8_000);
            assert!(chi < 4.0, "{name}, {shape}: chi squared is {chi} deviations off");
        }
    }
}

#[test]
fn ties_are_drawn_evenly_and_cut_by_index() {
    // All in one bin: the edge, of which top-k keeps a hundredth.
    let logits = vec![1.25; 500];
    let params = Params { top_k: 5, seed: 3, ..Params::default() };
    assert!(chi_squared(&logits, params, &[], 5_000) < 4.0);
    let params = Params { top_p: 0.5, seed: 4, ..Params::default() };
    assert!(chi_squared(&logits, params, &[], 5_000) < 4.0);
}

#[test]
fn the_greedy_token_is_the_first_of_the_largest() {
    let greedy = Params { temperature: 0.0, ..Params::default() };
    for step in 0..50 {
        let params = Params { step, ..greedy };
        assert_eq!(one(&[0.0, 2.0, -1.0, 2.0], params).unwrap().token, 1);
    }
    let sampled = one(&[0.0, 2.0, -1.0, 2.0], greedy).unwrap();
    let exact = -(2.0 + f64::exp(-2.0) + f64::exp(-3.0)).ln();
    assert!((f64::from(sampled.log_probability) - exact).abs() < 1e-5, "{sampled:?}");
}

#[test]
fn the_edges_of_shape() {
    let plain = Params::default();
    assert_eq!(one(&[-3.0], plain).unwrap().token, 0);
    assert_eq!(one(&[f32::NEG_INFINITY, -300_000.0], plain).unwrap().token, 1);
    let k_is_v = Params { top_k: 4, top_p: 1.0, ..plain };
    let sampled: Vec<u32> =
        (0..64).map(|step| one(&[0.0; 4], Params { step, ..k_is_v }).unwrap().token).collect();
    assert!((0..4).all(|token| sampled.contains(&token)), "{sampled:?}");
    let min_p = Params { min_p: 1.0, ..plain };
    assert!(
        (0..64).all(|step| one(&[0.0, 5.0, 4.9], Params { step, ..min_p }).unwrap().token == 1)
    );
    let tiny = Params { top_p: 1e-9, ..plain };
    assert!((0..64).all(|step| one(&[0.0, 5.0, 4.9], Params { step, ..tiny }).unwrap().token == 1));
}

#[test]
fn what_cannot_be_sampled_is_refused_by_name() {
    let plain = Params::default();
    let inf = f32::INFINITY;
    let table = [
        (vec![0.0, f32::NAN, 1.0], Refusal::Nan(1)),
        (vec![f32::NAN; 40], Refusal::Nan(0)),
        (vec![-inf, -inf], Refusal::AllMasked),
        (vec![0.0, 1.0, inf], Refusal::Infinite(2)),
        (vec![0.0, 1e9], Refusal::OutOfRange),
        (vec![-1e9, -2e9], Refusal::OutOfRange),
    ];
    for (logits, refusal) in table {
        assert_eq!(one(&logits, plain), Err(refusal), "{logits:?}");
        assert!(refusal.to_string().contains(match refusal {
            Refusal::Nan(_) => "is NaN",
            Refusal::AllMasked => "every logit is -inf",
            Refusal::Infinite(_) => "is +inf",
            Refusal::OutOfRange => "further than 346,000",
        }));
    }
}

#[test]
fn what_cannot_be_asked_for_is_refused_by_name() {
    let logits = [0.0; 8];
    let plain = [Params::default(); 2];
    let batch = Batch {
        logits: Logits::F32(&logits),
        vocab: 4,
        params: &plain,
        edits: &[],
        top_n: 0,
        entropy: false,
    };
    let refused = |batch: Batch, words: &str| {
        let text = sample(&batch, 1).unwrap_err().to_string();
        assert!(text.contains(words), "{text:?} does not say {words:?}");
    };
    refused(Batch { vocab: 0, ..batch }, "a vocabulary of 0 tokens");
    refused(Batch { vocab: VOCAB_MAX + 1, ..batch }, "must be 1 to 262144");
    refused(Batch { vocab: 5, ..batch }, "8 logits are not 2 rows of 5");
    refused(Batch { edits: &[vec![]], ..batch }, "1 lists of edits for 2 rows");
    refused(Batch { top_n: 33, ..batch }, "at most 32");
    let edit = |token, bias| Edit { token, count: 0, bias };
    for list in [vec![edit(4, 0.0)], vec![edit(1, 0.0), edit(1, 0.0)]] {
        refused(Batch { edits: &[vec![], list], ..batch }, "row 1: the edit of token");
    }
    refused(Batch { edits: &[vec![edit(2, f32::NAN)], vec![]], ..batch }, "has the bias NaN");
    let wrong = [
        (Params { temperature: -1.0, ..plain[0] }, "temperature is -1"),
        (Params { temperature: f32::NAN, ..plain[0] }, "temperature is NaN"),
        (Params { top_p: 0.0, ..plain[0] }, "top_p is 0"),
        (Params { min_p: 1.5, ..plain[0] }, "min_p is 1.5"),
        (Params { repetition_penalty: 0.0, ..plain[0] }, "repetition_penalty is 0"),
        (Params { presence_penalty: f32::INFINITY, ..plain[0] }, "presence_penalty is inf"),
        (Params { frequency_penalty: 2e6, ..plain[0] }, "frequency_penalty is 2000000"),
    ];
    for (params, words) in wrong {
        refused(Batch { params: &[plain[0], params], ..batch }, words);
    }
}

#[test]
fn edits_merge_history_and_biases() {
    let list = Edit::list(&[5, 2, 5], &[(9, -1.0), (5, 0.5)]);
    let flat: Vec<_> = list.iter().map(|e| (e.token, e.count, e.bias)).collect();
    assert_eq!(flat, [(2, 1, 0.0), (5, 2, 0.5), (9, 0, -1.0)]);
    let params = Params {
        repetition_penalty: 2.0,
        presence_penalty: 0.25,
        frequency_penalty: 0.5,
        ..Params::default()
    };
    let row = params.check(0).unwrap();
    assert_eq!(row.edit(4.0, &list[1]), 4.0 / 2.0 - 1.0 - 0.25 + 0.5);
    assert_eq!(row.edit(-4.0, &list[0]), -8.0 - 0.5 - 0.25);
    assert_eq!(row.edit(1.0, &list[2]), 0.0);
}

#[test]
fn widths_of_logits_agree() {
    // Numbers that all three widths hold exactly.
    let wide: Vec<f32> = (0..256).map(|i| ((i * 37) % 64) as f32 / 8.0).collect();
    let half = |x: f32| {
        let bits = x.to_bits();
        if x == 0.0 { 0 } else { ((bits >> 13) - (112 << 10)) as u16 }
    };
    let halves: Vec<u16> = wide.iter().map(|&x| half(x)).collect();
    let upper: Vec<u16> = wide.iter().map(|&x| (x.to_bits() >> 16) as u16).collect();
    let params: Vec<Params> =
        (0..4).map(|stream| Params { stream, top_p: 0.8, ..Params::default() }).collect();
    let batch =
        |logits| Batch { logits, vocab: 64, params: &params, edits: &[], top_n: 3, entropy: true };
    let first = sample(&batch(Logits::F32(&wide)), 1).unwrap();
    assert_eq!(first, sample(&batch(Logits::F16(&halves)), 3).unwrap());
    assert_eq!(first, sample(&batch(Logits::Bf16(&upper)), 2).unwrap());
}

fn any_params() -> impl Strategy<Value = Params> {
    let temperature = prop_oneof![Just(0.0f32), 0.05f32..5.0];
    let top_k = prop_oneof![Just(0u32), 1u32..8, 1u32..2_000];
    let top_p = prop_oneof![Just(1.0f32), 0.01f32..1.0];
    let min_p = prop_oneof![Just(0.0f32), 0.0f32..1.0];
    (temperature, top_k, top_p, min_p, any::<u64>(), any::<u32>()).prop_map(
        |(temperature, top_k, top_p, min_p, seed, step)| Params {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            step,
            ..Params::default()
        },
    )
}

proptest! {
    /// The token is kept by the reference (a threshold may be a hair off), and its log-probability,
    /// the entropy and the list of the likeliest are the reference's.
    #[test]
    fn agrees_with_the_reference(
        params in any_params(),
        count in 1usize..3_000,
        scale in prop_oneof![Just(0.0f64), 0.1f64..8.0],
        grain in prop_oneof![Just(0.0f32), Just(0.5f32)],
        seed in any::<u64>(),
    ) {
        let mut logits = gaussian(count, scale, seed);
        if grain > 0.0 {
            logits.iter_mut().for_each(|x| *x = (*x / grain).round() * grain);
        }
        let sampled = one_edited(&logits, params, Vec::new(), 5).unwrap();
        let near = Params {
            top_p: (params.top_p * 1.0001).min(1.0),
            min_p: params.min_p * 0.9999,
            ..params
        };
        let kept = reference(&logits, &near, &[]);
        prop_assert!(kept.iter().any(|&(token, _)| token == sampled.token));

        let temperature = if params.temperature == 0.0 { 1.0 } else { params.temperature };
        let whole = Params { temperature, ..Params::default() };
        let all = reference(&logits, &whole, &[]);
        let p = all.iter().find(|&&(token, _)| token == sampled.token).unwrap().1;
        prop_assert!((f64::from(sampled.log_probability) - p.ln()).abs() < 2e-5 * (1.0 - p.ln()));
        let entropy: f64 = all.iter().filter(|(_, p)| *p > 0.0).map(|(_, p)| -p * p.ln()).sum();
        prop_assert!((f64::from(sampled.entropy.unwrap()) - entropy).abs() < 3e-5, "{sampled:?} {entropy}");
        for (&(token, ln_p), &(expected, p)) in sampled.top.iter().zip(&all) {
            prop_assert_eq!(token, expected);
            prop_assert!((f64::from(ln_p) - p.ln()).abs() < 2e-5 * (1.0 - p.ln()));
        }
        let weighty = all.iter().take(5).filter(|(_, p)| *p > all[0].1 * 1e-9).count();
        prop_assert!(sampled.top.len() >= weighty && sampled.top.len() <= 5);
    }

    /// Rows do not know of each other, nor of threads.
    #[test]
    fn a_batch_is_its_rows(
        params in prop::collection::vec(any_params(), 1..9),
        seed in any::<u64>(),
    ) {
        let logits = gaussian(params.len() * 70, 2.0, seed);
        let (logits_of, edits) = (Logits::F32(&logits), &[]);
        let batch =
            Batch { logits: logits_of, vocab: 70, params: &params, edits, top_n: 2, entropy: true };
        let all = sample(&batch, 3).unwrap();
        for (i, params) in params.iter().enumerate() {
            let row = one_edited(&logits[i * 70..][..70], *params, Vec::new(), 2);
            prop_assert_eq!(&row, &all[i]);
        }
    }
}
