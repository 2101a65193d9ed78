//! What the machine does right now, for the heartbeat: true figures, cheap to read.
//!
//! On Linux the numbers come from `/proc` and one `statvfs`; elsewhere from `sysinfo`.

use std::path::PathBuf;

use cortex_wire::schema::HealthReport;

/// Reads the machine's state. CPU use is that since the last reading.
#[derive(Debug)]
pub struct Health {
    workspace_dir: PathBuf,
    source: source::Source,
}

impl Health {
    /// `workspace_dir`: whose file system is reported.
    pub fn new(workspace_dir: PathBuf) -> Self {
        Self { workspace_dir, source: source::Source::default() }
    }

    /// A report of this moment; what is about the connection is left to the caller.
    pub fn report(&mut self) -> HealthReport {
        let mut report = self.source.report();
        if let Some((free, total)) = disk(&self.workspace_dir) {
            report.disk_free_bytes = free;
            report.disk_total_bytes = total;
        }
        report
    }
}

/// Free and total bytes of the file system that holds `path`, or its nearest parent that exists.
#[cfg(unix)]
pub fn disk(path: &std::path::Path) -> Option<(u64, u64)> {
    let stat = path.ancestors().find_map(|path| rustix::fs::statvfs(path).ok())?;
    Some((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

/// Free and total bytes of the file system that holds `path`.
#[cfg(not(unix))]
pub fn disk(path: &std::path::Path) -> Option<(u64, u64)> {
    let disks = sysinfo::Disks::new_with_refreshed_list().ok()?;
    let disk = disks.iter().filter(|disk| path.starts_with(disk.mount_point())).max_by_key(|disk| disk.mount_point().as_os_str().len())?;
    Some((disk.available_space(), disk.total_space()))
}

#[cfg(target_os = "linux")]
mod source {
    use super::HealthReport;

    /// Jiffies since boot: all, and those in which no core had work.
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
    struct CpuTimes {
        total: u64,
        idle: u64,
    }

    #[derive(Debug, Default)]
    pub(super) struct Source {
        before: CpuTimes,
    }

    impl Source {
        pub(super) fn report(&mut self) -> HealthReport {
            let read = |path| std::fs::read_to_string(path).unwrap_or_default();
            let now = cpu_times(&read("/proc/stat"));
            let cpu_percent = busy_percent(self.before, now);
            self.before = now;
            let memory = read("/proc/meminfo");
            let total = kib_line(&memory, "MemTotal:");
            HealthReport {
                cpu_percent,
                memory_total_bytes: total,
                memory_used_bytes: total.saturating_sub(kib_line(&memory, "MemAvailable:")),
                load_1m: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
                uptime_s: read("/proc/uptime").split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0),
                peer_rss_bytes: kib_line(&read("/proc/self/status"), "VmRSS:"),
                ..HealthReport::default()
            }
        }
    }

    /// The first line of `/proc/stat`: user nice system idle iowait irq softirq steal (guest time is in user already).
    fn cpu_times(stat: &str) -> CpuTimes {
        let line = stat.lines().next().unwrap_or_default();
        let values: Vec<u64> = line.split_ascii_whitespace().skip(1).take(8).filter_map(|value| value.parse().ok()).collect();
        CpuTimes { total: values.iter().sum(), idle: values.get(3).copied().unwrap_or(0) + values.get(4).copied().unwrap_or(0) }
    }

    fn busy_percent(before: CpuTimes, now: CpuTimes) -> f64 {
        let total = now.total.saturating_sub(before.total);
        let busy = total.saturating_sub(now.idle.saturating_sub(before.idle));
        if total == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "jiffies between two heartbeats are few")]
        let percent = busy as f64 * 100.0 / total as f64;
        percent
    }

    fn kib_line(text: &str, name: &str) -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn cpu_use_is_what_was_busy_since_the_last_reading() {
            let before = cpu_times("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 …\n");
            let now = cpu_times("cpu  150 0 100 850 0 0 0 0 0 0\n");
            assert_eq!(before, CpuTimes { total: 1000, idle: 800 });
            assert!((busy_percent(before, now) - 50.0).abs() < 1e-9);
            assert!(busy_percent(now, now).abs() < 1e-9);
        }

        #[test]
        fn lines_of_kibibytes_become_bytes() {
            assert_eq!(kib_line("MemTotal:       24 kB\nMemFree: 1 kB\n", "MemTotal:"), 24 * 1024);
            assert_eq!(kib_line("", "MemTotal:"), 0);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod source {
    use super::HealthReport;

    #[derive(Debug)]
    pub(super) struct Source {
        system: Option<sysinfo::System>,
    }

    impl Default for Source {
        fn default() -> Self {
            Self { system: sysinfo::System::new().ok() }
        }
    }

    impl Source {
        pub(super) fn report(&mut self) -> HealthReport {
            let Some(system) = &mut self.system else { return HealthReport::default() };
            system.refresh_cpu_usage();
            system.refresh_memory();
            HealthReport {
                cpu_percent: f64::from(system.global_cpu_usage()),
                memory_total_bytes: system.total_memory(),
                memory_used_bytes: system.used_memory(),
                load_1m: sysinfo::System::load_average().one,
                uptime_s: sysinfo::System::uptime(),
                ..HealthReport::default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_report_is_about_this_machine() {
        let mut health = Health::new(std::env::temp_dir());
        health.report();
        let busy = std::time::Instant::now();
        while busy.elapsed().as_millis() < 150 {
            std::hint::black_box(0);
        }
        let report = health.report();
        assert!(report.memory_total_bytes > report.memory_used_bytes && report.memory_used_bytes > 0);
        assert!(report.disk_total_bytes >= report.disk_free_bytes && report.disk_free_bytes > 0);
        assert!(report.cpu_percent > 5.0 && report.cpu_percent <= 100.0, "{}", report.cpu_percent);
        assert!(report.uptime_s > 0 && report.peer_rss_bytes > 0);
    }
}
