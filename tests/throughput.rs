//! What is not captured, and stays on the bridge, is as fast as without us. Alone in its file, because
//! what runs beside it would be measured, too.

mod lab;

use std::io::Write;
use std::time::{Duration, Instant};

use lab::bridge::Bridge;
use lab::{CIDRS, Namespace};

/// In the environment: how many rounds to measure. The more, the less is noise.
const ROUNDS: &str = "ROUNDS";

/// A round differs from another by a fifth and more, so a few tell a blunder from noise, and no more:
/// `ROUNDS=300 cargo test --test throughput -- --nocapture` shows what it costs.
#[test]
fn other_ports_keep_the_throughput_of_the_bridge() {
    let rounds = std::env::var(ROUNDS).map_or(15, |rounds| rounds.parse().unwrap());
    for filter in [false, true] {
        let bridge = Bridge::new(filter);
        bridge.serve_sink();
        let mut ratios: Vec<f64> = (0..rounds).map(|_| with_to_without(&bridge)).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |part: usize| ratios[ratios.len() * part / 4];
        println!(
            "bridge-nf {filter}: throughput with to without: {:.3}, half of the rounds from {:.3} to {:.3}",
            at(2),
            at(1),
            at(3)
        );
        assert!(at(2) > 0.75, "{ratios:?}");
    }
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
