//! The report: `target/bench/report.json`, a list of one object a row, and `benches/report.md` for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::rows::{ROWS, Row, Target};
use crate::stats::{lower_bound, median, paired_ratios};

/// What a part of the bench found, by row.
#[derive(Debug, Default)]
pub struct Findings(BTreeMap<&'static str, Outcome>);

#[derive(Debug)]
enum Outcome {
    Measured(Figures),
    Skipped(String),
}

/// A row's figures: medians, ours over the baseline.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Ours.
    pub ours: f64,
    /// What it is compared with, and its figure.
    pub baseline: Option<(String, f64)>,
    /// The median of the paired ratios.
    pub ratio: Option<f64>,
    /// Their lower 90 % bound.
    pub bound: Option<f64>,
    /// The others of the same run, by name: told, not judged.
    pub beside: Vec<(String, f64)>,
}

/// A line of the JSON.
#[derive(Debug, Serialize)]
pub struct Line {
    id: &'static str,
    unit: &'static str,
    ours: Option<f64>,
    baseline: Option<f64>,
    baseline_name: Option<String>,
    ratio: Option<f64>,
    target: Option<String>,
    /// Whether the target is met; a skipped row meets none.
    pub holds: bool,
    /// Why there are no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl Findings {
    /// A figure without a baseline.
    pub fn single(&mut self, id: &'static str, ours: f64) {
        self.put(id, Figures { ours, ..Figures::default() });
    }

    /// Rounds of ours and of a baseline, alternated.
    ///
    /// # Errors
    /// No round has both.
    pub fn paired(&mut self, id: &'static str, ours: &[f64], name: &str, baseline: &[f64]) -> Result<()> {
        self.paired_beside(id, ours, name, baseline, Vec::new())
    }

    /// Likewise, with others' figures to tell beside.
    ///
    /// # Errors
    /// As `paired`.
    pub fn paired_beside(
        &mut self,
        id: &'static str,
        ours: &[f64],
        name: &str,
        baseline: &[f64],
        beside: Vec<(String, f64)>,
    ) -> Result<()> {
        let ratios = paired_ratios(ours, baseline);
        let (Some(own), Some(base), Some(ratio)) = (median(ours), median(baseline), median(&ratios)) else {
            anyhow::bail!("{id}: no round has both figures");
        };
        let (baseline, bound) = (Some((name.to_owned(), base)), lower_bound(&ratios));
        self.put(id, Figures { ours: own, baseline, ratio: Some(ratio), bound, beside });
        Ok(())
    }

    /// A row with its figures.
    fn put(&mut self, id: &'static str, figures: Figures) {
        self.0.insert(id, Outcome::Measured(figures));
    }

    /// Says of every row of these that has no figures why.
    pub fn skip<'a>(&mut self, rows: impl IntoIterator<Item = &'a Row>, why: &str) {
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        for row in rows {
            self.0.entry(row.id).or_insert_with(|| Outcome::Skipped(why.clone()));
        }
    }

    /// One line for each row of the bench.
    pub fn lines(&self, smoke: bool) -> Vec<Line> {
        ROWS.iter().map(|row| self.line(row, smoke)).collect()
    }

    fn line(&self, row: &Row, smoke: bool) -> Line {
        let target = target_text(row.target);
        let (id, unit) = (row.id, row.unit);
        match self.0.get(id) {
            Some(Outcome::Measured(f)) => Line {
                id,
                unit,
                ours: Some(f.ours),
                baseline: f.baseline.as_ref().map(|(_, figure)| *figure),
                baseline_name: f.baseline.as_ref().map(|(name, _)| name.clone()),
                ratio: f.ratio,
                target,
                holds: holds(row.target, f, if smoke { SMOKE_MARGIN } else { 1.0 }),
                skipped: None,
            },
            other => {
                let why = match other {
                    Some(Outcome::Skipped(why)) => why.as_str(),
                    _ => "its part did not tell it",
                };
                let (ours, baseline, baseline_name, ratio) = (None, None, None, None);
                let (holds, skipped) = (false, Some(why.to_owned()));
                Line { id, unit, ours, baseline, baseline_name, ratio, target, holds, skipped }
            }
        }
    }

    /// The report for people: ratios first.
    pub fn markdown(&self, head: &str, smoke: bool) -> String {
        let mut text = format!("# Bench\n{head}\n\n");
        text += "| ratio | target | holds | what | ours | baseline | unit |\n|---|---|---|---|---|---|---|\n";
        for (row, line) in ROWS.iter().zip(self.lines(smoke)).filter(|(_, line)| line.skipped.is_none()) {
            let Some(Outcome::Measured(f)) = self.0.get(row.id) else { continue };
            let mut baseline = f
                .baseline
                .as_ref()
                .map_or("-".to_owned(), |(name, figure)| format!("{} {name}", short(*figure)));
            for (name, figure) in &f.beside {
                let _ = write!(baseline, "; {} {name}", short(*figure));
            }
            let bound = f.bound.map(|bound| format!(" (>= {})", short(bound))).unwrap_or_default();
            let ratio = f.ratio.map_or("-".to_owned(), |ratio| format!("{}{bound}", short(ratio)));
            let target = line.target.as_deref().unwrap_or("-");
            let holds = if line.holds { "yes" } else { "**no**" };
            let (what, ours, unit) = (row.what, short(f.ours), row.unit);
            let _ =
                writeln!(text, "| {ratio} | {target} | {holds} | {what} | {ours} | {baseline} | {unit} |");
        }
        let mut skipped: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for line in self.lines(smoke) {
            if let Some(why) = line.skipped {
                skipped.entry(why).or_default().push(line.id);
            }
        }
        for (at, (why, ids)) in skipped.iter().enumerate() {
            text += if at == 0 { "\nSkipped:\n" } else { "" };
            let _ = writeln!(text, "- {}: {why}", ids.join(", "));
        }
        text
    }

    /// Fails where a row of the smoke run is missing or beyond its target by more than the margin.
    ///
    /// # Errors
    /// Names those rows.
    pub fn judge_smoke(&self) -> Result<()> {
        let bad: Vec<&str> =
            ROWS.iter().filter(|row| row.smoke && !self.line(row, true).holds).map(|row| row.id).collect();
        ensure!(bad.is_empty(), "beyond twice their target, or not measured: {}", bad.join(", "));
        Ok(())
    }
}

/// How far beyond its target a ratio may be before the smoke run fails: a shared machine is not quiet.
const SMOKE_MARGIN: f64 = 2.0;

fn holds(target: Target, figures: &Figures, margin: f64) -> bool {
    let ratio = |wanted: &dyn Fn(f64) -> bool| figures.ratio.is_some_and(wanted);
    match target {
        Target::Report => true,
        Target::RatioAtMost(most) => ratio(&|r| r <= most * margin),
        Target::RatioAtLeast(least) => ratio(&|r| r >= least / margin),
        Target::BoundedRatioAtLeast(least) => {
            ratio(&|r| r >= least / margin) && (margin > 1.0 || figures.bound.is_some_and(|b| b >= 1.0))
        }
        Target::AtMost(most) => figures.ours <= most,
        Target::Exactly(figure) => figures.ours == figure,
    }
}

fn target_text(target: Target) -> Option<String> {
    match target {
        Target::Report => None,
        Target::RatioAtMost(ratio) => Some(format!("<= {ratio} x")),
        Target::RatioAtLeast(ratio) => Some(format!(">= {ratio} x")),
        Target::BoundedRatioAtLeast(ratio) => Some(format!(">= {ratio} x, bound >= 1 x")),
        Target::AtMost(figure) => Some(format!("<= {figure}")),
        Target::Exactly(figure) => Some(format!("{figure}")),
    }
}

/// Three digits that count.
fn short(figure: f64) -> String {
    let whole = if figure == 0.0 { 0 } else { figure.abs().log10().floor() as i32 };
    format!("{figure:.*}", usize::try_from(2 - whole).unwrap_or(0).min(5))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn figures(ratio: f64) -> Figures {
        let baseline = Some(("peer".to_owned(), 1.0));
        Figures { ours: ratio, baseline, ratio: Some(ratio), bound: Some(ratio), beside: vec![] }
    }

    fn targets() -> impl Strategy<Value = Target> {
        let at = 0.01_f64..10.0;
        prop_oneof![
            at.clone().prop_map(Target::RatioAtMost),
            at.clone().prop_map(Target::RatioAtLeast),
            at.clone().prop_map(Target::BoundedRatioAtLeast),
            at.prop_map(Target::AtMost),
        ]
    }

    proptest! {
        #[test]
        fn what_holds_holds_with_a_margin_too(target in targets(), ratio in 0.001_f64..20.0) {
            let figures = figures(ratio);
            prop_assert!(!holds(target, &figures, 1.0) || holds(target, &figures, SMOKE_MARGIN));
        }

        #[test]
        fn without_a_ratio_no_ratio_holds(target in targets(), ours in 0.001_f64..20.0) {
            let figures = Figures { ours, ..Figures::default() };
            prop_assert!(matches!(target, Target::AtMost(_)) || !holds(target, &figures, SMOKE_MARGIN));
        }
    }

    #[test]
    fn a_report_has_a_line_for_each_row_and_holds_none_that_was_skipped() {
        let mut findings = Findings::default();
        findings.skip(ROWS.iter().take(1), "no such program");
        let lines = findings.lines(false);
        assert_eq!(lines.len(), ROWS.len());
        assert!(lines.iter().all(|line| !line.holds && line.skipped.is_some()));
        assert!(findings.markdown("", false).contains("no such program"));
        assert!(findings.judge_smoke().is_err());
    }

    #[test]
    fn a_wider_median_needs_its_bound() {
        let mut findings = Findings::default();
        let (ours, peer) = ([3.0, 3.0, 3.0, 0.1, 0.1, 3.0, 3.0], [1.0; 7]);
        findings.paired("tcp-1", &ours, "peer", &peer).unwrap();
        let line = findings.lines(false).into_iter().find(|line| line.id == "tcp-1").unwrap();
        assert_eq!((line.ratio, line.holds), (Some(3.0), false));
    }

    #[test]
    fn a_row_to_report_only_has_no_target_and_holds() {
        let mut findings = Findings::default();
        findings.single("start-2", 5.0);
        let line = findings.lines(false).into_iter().find(|line| line.id == "start-2").unwrap();
        assert_eq!((line.target, line.holds, line.skipped), (None, true, None));
    }
}
