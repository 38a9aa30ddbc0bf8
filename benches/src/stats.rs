//! What is said of repeated measurements: medians, paired ratios, and how sure a ratio is.
//!
//! No distribution is assumed: everything here is an order statistic.

/// A quantile, 0 to 1, between the two nearest values where it falls between them. None of nothing.
pub fn quantile(values: &[f64], at: f64) -> Option<f64> {
    let sorted = sorted(values);
    let place = at.clamp(0.0, 1.0) * (sorted.len().checked_sub(1)? as f64);
    let (below, above) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
    Some(below + (above - below) * place.fract())
}

/// The middle value. None of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// Ours over the baseline, round by round: what slows a whole round down cancels out. A round without a baseline
/// (0 or less) says nothing.
pub fn paired_ratios(ours: &[f64], baseline: &[f64]) -> Vec<f64> {
    ours.iter().zip(baseline).filter(|(_, baseline)| **baseline > 0.0).map(|(own, base)| own / base).collect()
}

/// A value that the true median is not below, with at least 90 % confidence, whatever the distribution: the k-th
/// smallest of n, where k is the largest with P(Binomial(n, 1/2) < k) <= 0.1 (the sign test's one-sided bound).
/// None of fewer than 4 values, which can't give that confidence.
pub fn lower_bound(values: &[f64]) -> Option<f64> {
    let n = values.len();
    let mut probability = 0.5_f64.powi(i32::try_from(n).ok()?);
    let mut below = 0.0;
    let mut rank = 0;
    while rank < n && below + probability <= 0.1 {
        below += probability;
        rank += 1;
        probability *= (n - rank + 1) as f64 / rank as f64;
    }
    sorted(values).get(rank.checked_sub(1)?).copied()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(0.001_f64..1e6, 1..60)
    }

    proptest! {
        #[test]
        fn half_of_the_values_lie_on_each_side_of_the_median(values in values()) {
            let middle = median(&values).unwrap();
            let below = values.iter().filter(|v| **v < middle).count();
            let above = values.iter().filter(|v| **v > middle).count();
            prop_assert!(below * 2 <= values.len() && above * 2 <= values.len());
        }

        #[test]
        fn order_does_not_matter(mut values in values(), at in 0.0_f64..1.0) {
            let before = (quantile(&values, at), lower_bound(&values));
            values.reverse();
            prop_assert_eq!(before, (quantile(&values, at), lower_bound(&values)));
        }

        #[test]
        fn quantiles_rise_and_stay_within(values in values(), a in 0.0_f64..1.0, b in 0.0_f64..1.0) {
            let (low, high) = (quantile(&values, a.min(b)).unwrap(), quantile(&values, a.max(b)).unwrap());
            prop_assert!(low <= high);
            prop_assert!(values.iter().any(|v| *v <= low) && values.iter().any(|v| *v >= high));
        }

        #[test]
        fn the_bound_is_one_of_the_values_and_not_above_the_median(values in values()) {
            match lower_bound(&values) {
                None => prop_assert!(values.len() < 4),
                Some(bound) => prop_assert!(values.contains(&bound) && bound <= median(&values).unwrap()),
            }
        }

        #[test]
        fn a_factor_on_a_whole_round_leaves_its_ratio(pairs in prop::collection::vec((0.1_f64..10.0, 0.1_f64..10.0, 0.1_f64..10.0), 1..20)) {
            let column = |f: fn(&(f64, f64, f64)) -> f64| pairs.iter().map(f).collect::<Vec<_>>();
            let plain = paired_ratios(&column(|p| p.0), &column(|p| p.1));
            let slowed = paired_ratios(&column(|p| p.0 * p.2), &column(|p| p.1 * p.2));
            for (a, b) in plain.iter().zip(&slowed) {
                prop_assert!((a - b).abs() < 1e-9 * a);
            }
        }
    }

    /// Of all 2^n ways in which n values can lie above or below the true median, the bound is wrong in at most a tenth.
    #[test]
    fn the_bound_holds_as_often_as_it_says() {
        for n in 4_u32..16 {
            let wrong = (0..1_u32 << n).filter(|signs| {
                let values: Vec<f64> =
                    (0..n).map(|bit| if signs >> bit & 1 == 1 { 1.0 } else { -1.0 }).collect();
                lower_bound(&values).unwrap() > 0.0
            });
            assert!(wrong.count() as f64 <= 0.1 * f64::from(1_u32 << n), "n = {n}");
        }
    }

    #[test]
    fn of_eleven_rounds_the_third_smallest_bounds() {
        let values: Vec<f64> = (1..=11).map(f64::from).collect();
        assert_eq!(lower_bound(&values), Some(3.0));
    }
}
