//! What a job brought, as text for people: what one wants to read in the morning.

use super::progress::{decimal, grouped, printable};
use super::report::{JobReport, RankReport};
use super::tally::ServerTally;
use crate::metrics::durations::HEADING;

/// Ranks that have a row each; of more the busiest and the idlest have one.
const RANK_ROWS_MAX: usize = 32;
/// Of either.
const RANK_ROWS_ENDS: usize = 8;
/// Servers and kinds of errors that are told; the JSON has all.
const ROWS_MAX: usize = 16;
/// Characters of a node's or server's name.
const NAME_CHARS: usize = 24;

const _: () = assert!(2 * RANK_ROWS_ENDS < RANK_ROWS_MAX);

impl JobReport {
    /// For people.
    pub fn to_text(&self) -> String {
        let total = self.total();
        let mut text = self.headline(&total);
        if let Some(note) = &self.note {
            text += &format!("{}\n", printable(note));
        }
        let tally = &total.tally;
        if tally.ok > 0 {
            text += &format!("\n{HEADING}");
            for (name, durations) in
                [("queue", &tally.queue), ("TTFT", &tally.ttft), ("total", &tally.latency)]
            {
                if durations.count() > 0 {
                    text += &format!("{}\n", durations.row(name));
                }
            }
        }
        text += &self.rank_table(&total);
        text += &self.server_table(&total);
        text += &error_table(&total);
        text + &self.explained(&total)
    }

    fn headline(&self, total: &RankReport) -> String {
        let tally = &total.tally;
        let source = match self.tokens_source {
            "" => String::new(),
            source => format!(" ({source})"),
        };
        let earlier = match self.skipped {
            0 => String::new(),
            skipped => format!(", {} done in earlier runs", grouped(skipped)),
        };
        format!(
            "{} done, {} failed{earlier}\n{:.2} s, {} requests/s, {} tokens/s{source}\n",
            grouped(tally.ok),
            grouped(tally.failed),
            self.wall_s,
            decimal(self.per_second(tally.ok)),
            decimal(self.per_second(tally.completion_tokens)),
        )
    }

    fn rank_table(&self, total: &RankReport) -> String {
        if self.ranks.is_empty() {
            return String::new();
        }
        let nodes = self.ranks.iter().map(|rank| short(&rank.node).chars().count());
        let wide = nodes.max().unwrap_or(0).max(4);
        let mut text = format!(
            "\n{:>6}  {:<wide$}{:>10} {:>6} {:>9} {:>6} {:>6} {:>9} {:>13} {:>8} {:>9}\n",
            "rank",
            "node",
            "done",
            "failed",
            "tokens/s",
            "busy %",
            "idle %",
            "won/tried",
            "moved in/out",
            "p50 ms",
            "p99 ms"
        );
        let row = |name: &str, node: &str, of: &RankReport| self.rank_row(name, node, wide, of);
        let own = |rank: &RankReport| row(&rank.rank.to_string(), &short(&rank.node), rank);
        if self.ranks.len() <= RANK_ROWS_MAX {
            self.ranks.iter().for_each(|rank| text += &own(rank));
        } else {
            let mut order: Vec<&RankReport> = self.ranks.iter().collect();
            let busy = |rank: &RankReport| rank.busy_share().unwrap_or(0.0);
            order.sort_by(|a, b| busy(b).total_cmp(&busy(a)));
            let (busiest, rest) = order.split_at(RANK_ROWS_ENDS);
            let (between, idlest) = rest.split_at(rest.len() - RANK_ROWS_ENDS);
            busiest.iter().for_each(|rank| text += &own(rank));
            let others = RankReport::sum(between.iter().copied());
            text += &row(&format!("+{}", between.len()), "", &others);
            idlest.iter().for_each(|rank| text += &own(rank));
        }
        if self.ranks.len() > 1 {
            text += &row("all", "", total);
        }
        text
    }

    fn rank_row(&self, name: &str, node: &str, wide: usize, of: &RankReport) -> String {
        let tally = &of.tally;
        let percent = |share: Option<f64>| share.map_or("-".to_owned(), |s| decimal(100.0 * s));
        let ms = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.2}"));
        format!(
            "{name:>6}  {node:<wide$}{:>10} {:>6} {:>9} {:>6} {:>6} {:>9} {:>13} {:>8} {:>9}\n",
            grouped(tally.ok),
            grouped(tally.failed),
            decimal(self.per_second(tally.completion_tokens)),
            percent(of.busy_share()),
            percent(of.idle_share()),
            format!("{}/{}", grouped(of.steals_won), grouped(of.steals_tried)),
            format!("{}/{}", grouped(of.tasks_in), grouped(of.tasks_out)),
            ms(tally.latency.percentile_ms(50.0, 1)),
            ms(tally.latency.percentile_ms(99.0, 100)),
        )
    }

    fn server_table(&self, total: &RankReport) -> String {
        let mut servers: Vec<(&String, &ServerTally)> = total.tally.servers.iter().collect();
        if servers.is_empty() {
            return String::new();
        }
        servers.sort_by_key(|(_, server)| std::cmp::Reverse(server.busy_us));
        let names = servers.iter().take(ROWS_MAX).map(|(name, _)| short(name).chars().count());
        let wide = names.max().unwrap_or(0).max(6);
        let mut text = format!(
            "\n{:<wide$}{:>10}{:>8}{:>11}{:>11}\n",
            "server", "done", "failed", "tokens/s", "busy s"
        );
        for (name, server) in servers.iter().take(ROWS_MAX) {
            text += &format!(
                "{:<wide$}{:>10}{:>8}{:>11}{:>11}\n",
                short(name),
                grouped(server.ok),
                grouped(server.failed),
                decimal(self.per_second(server.completion_tokens)),
                decimal(server.busy_us as f64 / 1e6),
            );
        }
        if servers.len() > ROWS_MAX {
            text += &format!("and {} more\n", servers.len() - ROWS_MAX);
        }
        text
    }

    /// Efficiency and balance, in words.
    fn explained(&self, total: &RankReport) -> String {
        let mut text = String::new();
        if let Some(efficiency) = self.efficiency(total) {
            let longest = total.tally.longest_us as f64 / 1e6;
            let bound = if longest >= total.ideal_s() {
                "the longest task"
            } else {
                "all slots busy to the end"
            };
            text += &format!(
                "\nefficiency {:.1} %: these tasks take {:.2} s at least ({bound}), and took \
                 {:.2} s\n",
                100.0 * efficiency,
                total.ideal_s(),
                self.wall_s
            );
        }
        if let Some(balance) = self.balance().filter(|_| self.ranks.len() > 1) {
            text += &format!(
                "balance {balance:.2}: the busiest rank's slots were held {balance:.2} times as \
                 long as the mean; 1.00 is even\n"
            );
        }
        text
    }
}

/// By kind, the most frequent first.
fn error_table(total: &RankReport) -> String {
    let mut errors: Vec<(&String, &u64)> = total.tally.errors.iter().collect();
    if errors.is_empty() {
        return String::new();
    }
    errors.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let mut text = "\nerrors\n".to_owned();
    for (kind, count) in errors.iter().take(ROWS_MAX) {
        text += &format!("{:>9} x {}\n", grouped(**count), printable(kind));
    }
    if errors.len() > ROWS_MAX {
        let rest = errors[ROWS_MAX..].iter().fold(0, |sum: u64, (_, n)| sum.saturating_add(**n));
        let kinds = errors.len() - ROWS_MAX;
        text += &format!("{:>9} of {kinds} more kinds\n", grouped(rest));
    }
    text
}

/// A name that fits its column.
fn short(name: &str) -> String {
    let name = printable(name);
    if name.chars().count() <= NAME_CHARS {
        return name;
    }
    name.chars().take(NAME_CHARS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tally::{Sample, Tally};
    use super::*;

    fn rank(rank: u32, tasks: u64, errors: u64) -> RankReport {
        let mut tally = Tally::default();
        for n in 0..tasks {
            let error = (n < errors).then_some("HTTP 503: \x1b[2Jbusy");
            tally.record(&Sample {
                ok: error.is_none(),
                queue_us: 100,
                ttft_us: Some(2_000),
                latency_us: 50_000,
                busy_us: 50_000,
                completion_tokens: 20,
                error,
                server: if rank == 0 { "a:1" } else { "b:2" },
                ..Sample::default()
            });
        }
        RankReport {
            rank,
            node: format!("node-{}", rank / 2),
            slots: 2,
            wall_us: 2_600_000,
            tally,
            steals_tried: 3,
            steals_won: u64::from(rank),
            tasks_in: 1_040 * u64::from(rank),
            tasks_out: 40,
            idle_us: 5_200_000 - 50_000 * tasks,
            ..RankReport::default()
        }
    }

    fn job(ranks: Vec<RankReport>) -> JobReport {
        JobReport {
            wall_s: 2.6,
            ranks,
            skipped: 1_000,
            note: Some("Interrupted; the same command goes on.".to_owned()),
            tokens_source: "usage",
            ..JobReport::default()
        }
    }

    #[test]
    fn the_text_of_a_small_job() {
        let expected = "\
177 done, 3 failed, 1,000 done in earlier runs
2.60 s, 68.1 requests/s, 1,384.6 tokens/s (usage)
Interrupted; the same command goes on.

ms                  n       p50       p95       p99     p99.9       max
queue             177      0.10      0.10      0.10         -      0.10
TTFT              177      2.00      2.00      2.00         -      2.00
total             177     50.02     50.02     50.02         -     50.02

  rank  node        done failed  tokens/s busy % idle % won/tried  moved in/out   p50 ms    p99 ms
     0  node-0       100      0     769.2   96.2    3.8       0/3          0/40    50.02     50.02
     1  node-0        77      3     615.4   76.9   23.1       1/3      1,040/40    50.02         -
   all               177      3   1,384.6   86.5   13.5       1/6      1,040/80    50.02     50.02

server      done  failed   tokens/s     busy s
a:1          100       0      769.2        5.0
b:2           77       3      615.4        4.0

errors
        3 x HTTP 503:  [2Jbusy

efficiency 86.5 %: these tasks take 2.25 s at least (all slots busy to the end), and took 2.60 s
balance 1.11: the busiest rank's slots were held 1.11 times as long as the mean; 1.00 is even
";
        let text = job(vec![rank(0, 100, 0), rank(1, 80, 3)]).to_text();
        assert_eq!(text, expected);
    }

    #[test]
    fn of_many_ranks_the_ends_are_told() {
        let ranks = (0..100).map(|n| rank(n, u64::from(n % 97), 0)).collect();
        let text = job(ranks).to_text();
        let rows = text.lines().skip_while(|line| !line.contains("won/tried")).skip(1);
        let rows = rows.take_while(|line| !line.is_empty());
        let first: Vec<&str> = rows.map(|row| row.split_whitespace().next().unwrap()).collect();
        let busiest = ["96", "95", "94", "93", "92", "91", "90", "89"];
        let idlest = ["4", "3", "2", "99", "1", "98", "0", "97"];
        assert_eq!(first, [&busiest[..], &["+84"], &idlest[..], &["all"]].concat());
        let sum = text.lines().find(|line| line.trim_start().starts_with("+84")).unwrap();
        assert!(sum.contains(" 3,906 ") && sum.contains(" 3,906/252 "), "{sum}");
    }

    #[test]
    fn names_and_kinds_are_cut_to_what_can_be_read() {
        let mut one = rank(0, 1, 0);
        one.node = "n".repeat(100);
        for n in 0..40 {
            let (error, server) = (format!("kind {n}"), format!("server-{n}"));
            let sample = Sample { error: Some(&error), server: &server, ..Sample::default() };
            one.tally.record(&sample);
        }
        let text = job(vec![one]).to_text();
        assert!(text.contains(&format!("{}… ", "n".repeat(NAME_CHARS - 1))), "{text}");
        assert!(text.contains("and 25 more\n"), "{text}");
        assert!(text.contains("       24 of 24 more kinds\n"), "{text}");
        assert!(!text.contains("balance"), "one rank has nothing to be even with: {text}");
    }

    #[test]
    fn nothing_done() {
        let text = JobReport::default().to_text();
        assert_eq!(text, "0 done, 0 failed\n0.00 s, 0.0 requests/s, 0.0 tokens/s\n");
    }
}
