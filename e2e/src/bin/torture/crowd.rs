//! Nodes that only the API knows: they come, change and go beside the lab's own, and give the agents plans to make.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::json;
use wg_overlay_e2e::lab::Lab;
use wg_overlay_e2e::look::{create_node, made_up};

use super::run::Run;

/// Their numbers: of underlay addresses, and of PodCIDRs, that no node of the lab has.
const NUMBERS: std::ops::Range<u8> = 100..200;

/// Those that are there.
#[derive(Default)]
pub struct Crowd {
    present: BTreeSet<u8>,
}

impl Crowd {
    /// Up to so many come, go, or change their address.
    pub fn change(&mut self, run: &mut Run, lab: &Lab, at_most: u8) -> Result<()> {
        for _ in 0..run.random.u8(1..=at_most) {
            let number = run.random.u8(NUMBERS);
            match (self.present.contains(&number), run.random.bool()) {
                (false, _) => {
                    create_node(lab, &made_up(&name(number), number))?;
                    self.present.insert(number);
                }
                (true, true) => {
                    lab.api().delete_node(&name(number))?;
                    self.present.remove(&number);
                }
                (true, false) => {
                    let address = format!("172.30.0.{}", run.random.u8(200..250));
                    let addresses = [json!({ "type": "InternalIP", "address": address })];
                    lab.api()
                        .patch_status(&name(number), &json!({ "status": { "addresses": addresses } }))?;
                }
            }
        }
        Ok(())
    }

    /// One of those that are there.
    pub fn any(&self, run: &mut Run) -> Option<u8> {
        let all: Vec<u8> = self.present.iter().copied().collect();
        (!all.is_empty()).then(|| run.choose(&all))
    }

    /// All go.
    pub fn leave(&mut self, lab: &Lab) -> Result<()> {
        std::mem::take(&mut self.present)
            .into_iter()
            .try_for_each(|number| lab.api().delete_node(&name(number)))
    }
}

fn name(number: u8) -> String {
    format!("made-up-{number}")
}
