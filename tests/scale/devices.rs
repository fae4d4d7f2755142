//! Pods that come to a node's bridge and go.

use std::thread::sleep;
use std::time::Duration;

use crate::lab::bridge::Bridge;
use crate::lab::rtnetlink::Batch;
use crate::lab::wait_until;
use crate::{guard_cpu, size, timed};

/// Time between two devices, 40 a second.
const PACE: Duration = Duration::from_millis(25);

#[test]
fn the_redirect_follows_the_ports_of_a_bridge() {
    let count = size(50, 500);
    let bridge = Bridge::without_any(false);
    bridge.add_bridge();
    let (node, pod) = (&bridge.node, bridge.pod.path());
    node.run("ip address add 10.244.0.1/22 dev cni0");
    let daemon = bridge.start(&[]);
    daemon.wait_for("Created table bridge");
    let change = |what: &str, pace, line: fn(usize, &str) -> String, expected: usize| {
        let cpu = guard_cpu(&daemon, || {
            let took = timed(|| {
                let mut batch = Batch::new(node, "-4");
                for number in 0..count {
                    batch.execute(&line(number, &pod));
                    sleep(pace);
                }
                batch.finish();
            });
            print!("{count} ports {what} within {took:.1?}: ");
            wait_until("the map has the ports", || {
                let map = node.run("nft list map bridge tproxy-pod ports");
                // One in the type of the map, and one in each element.
                map.matches(" : ").count() == 1 + expected
            });
        });
        println!("{cpu:.1?} of the guard's CPU");
    };
    for pace in [PACE, Duration::ZERO] {
        change("appear", pace, add, count);
        let time = Duration::from_secs(size(0, 5));
        let cpu = guard_cpu(&daemon, || sleep(time));
        println!("they stay for {time:?}: {cpu:.1?}");
        change("disappear", pace, delete, 0);
    }
}

fn add(number: usize, pod: &str) -> String {
    format!(
        "link add v{number} type veth peer name p{number} netns {pod}\nlink set v{number} master cni0 up"
    )
}

fn delete(number: usize, _: &str) -> String {
    format!("link delete v{number}")
}
