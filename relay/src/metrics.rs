//! What the relay counts, in the text format that Prometheus reads.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError, atomic::Ordering::Relaxed},
};

use cortex_runtime::metrics::Exposition;

use crate::{Relay, load::processor_time, route::Drop};

/// Codes that are told apart. Hubs choose some of them; what goes beyond is counted as `other`.
const CODES: usize = 32;
/// The longest code.
const CODE_BYTES: usize = 32;

/// Callers that were not admitted, by code.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<String, u64>>);

impl Refusals {
    /// One more.
    pub(crate) fn count(&self, code: &str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_code = (1..=CODE_BYTES).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let known = is_code && (counts.contains_key(code) || counts.len() < CODES);
        *counts.entry(if known { code } else { "other" }.to_owned()).or_default() += 1;
    }

    /// The counts.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All of it.
pub fn text(relay: &Relay) -> String {
    let mut out = Exposition::default();
    out.labelled("cortex_relay_build_info", "gauge", "The program's version.", "version", [(env!("CARGO_PKG_VERSION"), 1)]);
    links(relay, &mut out);
    traffic(relay, &mut out);
    chunks(relay, &mut out);
    out.labelled("cortex_relay_refused_total", "counter", "Callers that were not admitted, by code.", "code", relay.refusals.counts());
    let reloads = [("used", relay.reloads.used.load(Relaxed)), ("refused", relay.reloads.refused.load(Relaxed))];
    out.labelled(
        "cortex_relay_reloads_total",
        "counter",
        "Times that settings were read again, by whether they could be used.",
        "outcome",
        reloads,
    );
    out.gauge("cortex_relay_load_percent", "The larger of places taken and processor time, as hubs are told.", relay.load());
    out.counter("process_cpu_seconds_total", "Processor time used.", processor_time().as_secs_f64());
    out.into_text()
}

fn links(relay: &Relay, out: &mut Exposition) {
    out.head("cortex_relay_links", "gauge", "Links, by who is there and what carries them.");
    for ((kind, carrier), count) in relay.links_by_carrier() {
        out.line(&format!("cortex_relay_links{{kind=\"{kind}\",carrier=\"{carrier}\"}}"), count);
    }
    out.gauge("cortex_relay_links_limit", "Links that there may be.", relay.max_links.load(Relaxed));
    out.gauge("cortex_relay_tunnels", "Connections over TCP that carry links.", relay.tunnels());
    let hubs = relay.hubs().into_iter().map(|(hub, online)| (hub, u8::from(online)));
    out.labelled("cortex_relay_hub_up", "gauge", "Whether a hub is linked.", "hub", hubs);
    out.gauge("cortex_relay_draining", "Whether links are being told to go elsewhere.", u8::from(relay.is_draining()));
}

fn traffic(relay: &Relay, out: &mut Exposition) {
    let counters = relay.counters();
    out.counter("cortex_relay_forwarded_packets_total", "Packets forwarded.", counters.packets.load(Relaxed));
    out.counter("cortex_relay_forwarded_bytes_total", "Bytes forwarded.", counters.bytes.load(Relaxed));
    out.counter("cortex_relay_own_packets_total", "Packets for the relay itself.", counters.own.load(Relaxed));
    let dropped = Drop::ALL.iter().map(|reason| (reason.label(), counters.dropped(*reason)));
    out.labelled("cortex_relay_dropped_packets_total", "counter", "Packets dropped, by reason.", "reason", dropped);
    counters.queued.write(out, "cortex_relay_queue_seconds", "How long packets waited for a tunnel over TCP. Those over UDP do not wait.");
}

fn chunks(relay: &Relay, out: &mut Exposition) {
    let (cache, passed) = (relay.chunks(), &relay.chunks().counters);
    let given = [("cache", &passed.from_cache), ("disk", &passed.from_disk), ("hub", &passed.from_hub)]
        .map(|(source, bytes)| (source, bytes.load(Relaxed)));
    out.labelled(
        "cortex_relay_chunk_bytes_total",
        "counter",
        "Bytes of sealed chunks for nodes, by where they came from.",
        "source",
        given,
    );
    let asked = [("hit", passed.hits.load(Relaxed)), ("miss", passed.misses.load(Relaxed))];
    out.labelled("cortex_relay_chunks_total", "counter", "Sealed chunks for nodes, by whether the hub had to be asked.", "cache", asked);
    out.counter("cortex_relay_stored_chunk_bytes_total", "Bytes of sealed chunks that nodes stored.", passed.stored.load(Relaxed));
    out.gauge("cortex_relay_cache_bytes", "Bytes of sealed chunks held in memory.", cache.bytes());
    if let Some(disk) = cache.disk() {
        out.gauge("cortex_relay_cache_disk_bytes", "Bytes of sealed chunks on disk, as they count towards the limit.", disk.bytes());
        out.gauge("cortex_relay_cache_disk_up", "1 while the disk tier works, 0 when its disk has failed.", u8::from(!disk.is_off()));
        out.counter("cortex_relay_cache_damaged_total", "Chunks on disk that were not what they should be.", disk.damaged());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_cannot_make_more_codes_than_there_is_room_for() {
        let refusals = Refusals::default();
        for n in 0..100u8 {
            let code: String = [b'a' + n / 26, b'a' + n % 26].map(char::from).iter().collect();
            refusals.count(&code);
        }
        refusals.count("aa");
        for odd in ["", "Evil\"} 1", &"x".repeat(33)] {
            refusals.count(odd);
        }
        let counts = refusals.counts();
        assert_eq!(counts.len(), CODES + 1);
        assert_eq!((counts["aa"], counts["other"]), (2, 100 - CODES as u64 + 3));
    }
}
