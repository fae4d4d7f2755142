//! Traffic on a bridge that is not captured is as fast as without the program. A crate of its own: tests that
//! run at the same time would change the measurement.

mod lab;

use std::io::Write;
use std::time::{Duration, Instant};

use lab::bridge::Bridge;
use lab::{CIDRS, Namespace};

/// Ratio of throughput, with the program to without, that fails the test.
const BLUNDER: f64 = 0.75;

/// Environment variable: number of rounds to measure; more rounds reduce noise.
const ROUNDS: &str = "ROUNDS";

/// Rounds differ by a fifth and more: a few show only a gross error. `ROUNDS=300 cargo test --test throughput
/// -- --nocapture` shows the cost.
#[test]
fn other_ports_keep_the_throughput_of_the_bridge() {
    let rounds = std::env::var(ROUNDS).map_or(15, |rounds| rounds.parse().unwrap());
    for filter in [false, true] {
        let bridge = Bridge::new(filter);
        bridge.serve_sink();
        let mut ratios: Vec<f64> = Vec::new();
        // On a busy machine rounds differ more: measure more of them.
        while ratios.len() < 4 * rounds && quarter(&ratios, 2) <= BLUNDER {
            ratios.extend((0..rounds).map(|_| with_to_without(&bridge)));
            ratios.sort_by(f64::total_cmp);
        }
        let [low, median, high] = [1, 2, 3].map(|part| quarter(&ratios, part));
        println!(
            "bridge-nf {filter}: throughput with to without: {median:.3}, half of the rounds from {low:.3} to \
             {high:.3}"
        );
        assert!(median > BLUNDER, "{ratios:?}");
    }
}

/// Quartile `part` of the ratios; 0 if there are none.
fn quarter(ratios: &[f64], part: usize) -> f64 {
    ratios.get(ratios.len() * part / 4).copied().unwrap_or(0.0)
}

fn with_to_without(bridge: &Bridge) -> f64 {
    let before = throughput(&bridge.pod);
    let mut daemon = bridge.start(&["--cidr", CIDRS]);
    let with = throughput(&bridge.pod);
    assert_eq!(daemon.stop(), Some(0));
    2.0 * with / (before + throughput(&bridge.pod))
}

/// Bytes that the Pod sends in a second to another port of its peer.
fn throughput(pod: &Namespace) -> f64 {
    let mut stream = pod.connect("10.244.0.6:9000").unwrap();
    let (piece, start) = ([0; 64 * 1024], Instant::now());
    let mut sent = 0;
    while start.elapsed() < Duration::from_millis(200) {
        stream.write_all(&piece).unwrap();
        sent += piece.len();
    }
    sent as f64 / start.elapsed().as_secs_f64()
}
