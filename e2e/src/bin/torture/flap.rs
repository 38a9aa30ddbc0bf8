//! One Node changes ten times a second: what that costs each other agent, and whether its peers are right in the end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde_json::json;
use wg_overlay_e2e::lab::{Lab, Node, Pace};
use wg_overlay_e2e::look::converged::pods;
use wg_overlay_e2e::look::{KEY, OVERLAY_IPS, create_node, made_up, made_up_key};

use super::crowd::Crowd;
use super::run::Run;
use super::traffic::Traffic;

const NODES: u8 = 4;
const RESYNC: Duration = Duration::from_secs(60);
/// How long it changes, and how often.
const TIME: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(100);
/// Of a core, that another agent may spend on it.
const SHARE: f64 = 0.01;
const NAME: &str = "flapping";
const NUMBER: u8 = 90;

/// What changes of it, and how: the number of the change tells its states apart.
type Flap = (&'static str, fn(&Lab, u8) -> Result<()>);

const FLAPS: [Flap; 5] = [
    ("address", |lab, number| {
        let addresses =
            [json!({ "type": "InternalIP", "address": format!("172.30.0.{}", 200 + number % 50) })];
        lab.api().patch_status(NAME, &json!({ "status": { "addresses": addresses } })).map(drop)
    }),
    ("PodCIDR", |lab, number| {
        let other = made_up(NAME, 91 + number % 2);
        let annotations = json!({ (OVERLAY_IPS): other["metadata"]["annotations"][OVERLAY_IPS] });
        let change = json!({ "metadata": { "annotations": annotations }, "spec": other["spec"] });
        lab.api().patch_node(NAME, &change).map(drop)
    }),
    ("key", |lab, number| {
        lab.api().annotate(NAME, &json!({ (KEY): made_up_key(200 + number % 50) })).map(drop)
    }),
    ("giant annotation", |lab, number| {
        let giant = char::from(b'a' + number % 26).to_string().repeat(100 << 10);
        let [key, other] =
            if number % 2 == 0 { [giant, String::new()] } else { [made_up_key(NUMBER), giant] };
        lab.api().annotate(NAME, &json!({ (KEY): key, "example.com/other": other })).map(drop)
    }),
    ("existence", |lab, number| {
        if number % 2 == 0 { lab.api().delete_node(NAME) } else { create_node(lab, &made_up(NAME, NUMBER)) }
    }),
];

pub fn run(run: &mut Run) -> Result<()> {
    run.in_lab(NODES, RESYNC, |run, lab| {
        let pods = pods(lab)?;
        let pace = Pace { interval: Duration::from_millis(100), ..Pace::default() };
        let traffic = Traffic::start(run, lab, &pods.iter().collect::<Vec<_>>(), pace)?;
        Crowd::default().change(run, lab, 40)?;
        let mut flaps = FLAPS;
        run.random.shuffle(&mut flaps);
        let end = run.until(1.0);
        for (at, flap) in flaps.into_iter().enumerate() {
            if at == 0 || Instant::now() + TIME < end {
                change(run, lab, flap)?;
            }
        }
        traffic.end(run, "packets between all pods", |_| true)
    })
}

fn change(run: &mut Run, lab: &Lab, (what, flap): Flap) -> Result<()> {
    // Whatever became of it before, if it is there at all.
    let _absent = lab.api().delete_node(NAME);
    create_node(lab, &made_up(NAME, NUMBER))?;
    run.settle(lab)?;
    let used = || lab.nodes().iter().map(processor_time).collect::<Result<Vec<_>>>();
    let (mut seconds, mut last, began) = (Vec::new(), (used()?, Instant::now()), Instant::now());
    let mut changes = 0_u8;
    // To the end of an odd one: then the Node is there, and good.
    while began.elapsed() < TIME || changes % 2 == 1 {
        flap(lab, changes)?;
        changes += 1;
        let due = began + INTERVAL * u32::from(changes);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if changes.is_multiple_of(10) {
            let now = (used()?, Instant::now());
            let took = (now.1 - last.1).as_secs_f64();
            let spent = now.0.iter().zip(&last.0).map(|(now, before)| now.saturating_sub(*before));
            seconds.push(spent.map(|spent| spent.as_secs_f64() / took).collect::<Vec<_>>());
            last = now;
        }
    }
    let took = began.elapsed().as_secs_f64();
    let shares: Vec<f64> = (0..lab.nodes().len()).map(|node| median(&seconds, node)).collect();
    let over = shares.iter().filter(|share| **share > SHARE).count();
    let percent: Vec<String> = shares.iter().map(|share| format!("{:.2}", share * 100.0)).collect();
    let note =
        format!("{changes} changes in {took:.0} s, % of a core in the median second: {}", percent.join(", "));
    let (tried, over) = (u64::try_from(shares.len())?, u64::try_from(over)?);
    run.note(&format!("{what}: agents above 1 % of a core"), (tried, over), "agents", note, over == 0);
    let wrong = run.settle(lab).err().map(|error| format!("{error:#}"));
    let lost = u64::from(wrong.is_some());
    run.note(
        &format!("{what}: peers right in the end"),
        (tried, lost),
        "agents",
        wrong.unwrap_or_default(),
        lost == 0,
    );
    Ok(())
}

/// The middle one of a node's seconds: another machine's work on the same processor lies in a few of them.
fn median(seconds: &[Vec<f64>], node: usize) -> f64 {
    let mut all: Vec<f64> = seconds.iter().filter_map(|second| second.get(node).copied()).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// Of a node's agent and of the programs it ran to their end.
fn processor_time(node: &Node) -> Result<Duration> {
    let pid = node.agent_pid().with_context(|| format!("no agent on {}", node.name()))?;
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed())).context("the agent's clock")?;
    let own = Duration::from(clock_gettime(clock)?);
    // Fields 16 and 17 of /proc/PID/stat: cutime and cstime, in ticks of 10 ms (proc_pid_stat(5)).
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("a short stat")?;
    let ticks: u64 =
        rest.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(own + Duration::from_millis(10 * ticks))
}
