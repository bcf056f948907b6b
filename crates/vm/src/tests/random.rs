//! Random sequences of memory calls on up to three spaces and four CPUs, against the oracle.

use proptest::prelude::*;

use super::host::Host;
use super::steps::{Step, step};
use super::world::World;
use super::{config, longest};

/// All steps, one after another, checked after each.
fn play(host: &Host, steps: &[Step]) {
    let mut world = World::new(host);
    for step in steps {
        world.run(step);
        world.check();
    }
    world.leave();
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, ..config(100) })]
    #[test]
    fn spaces_and_oracle_agree(steps in prop::collection::vec(step(), 1..longest(220))) {
        for host in [Host::new(3072), Host::adaptive(3072)] {
            play(&host, &steps);
            prop_assert_eq!(host.used(), 0, "every frame and table came back");
            host.check_zero_page();
        }
    }
}
