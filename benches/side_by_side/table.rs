//! The table: medians, with the least and the most beside them, and ratios of medians.

/// The costs of one gateway, one for each repetition.
#[derive(Debug, Default, Clone)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds a repetition.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Returns the median.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }

    fn cell(&self) -> String {
        let Some(median) = self.median() else { return "-".into() };
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{} ({}–{})", short(median), short(least), short(most))
    }
}

/// One kind of work.
#[derive(Debug, Clone)]
pub struct Row {
    /// The name of the work.
    pub work: &'static str,
    /// Whether it is a latency, which other work of the machine changes by far more than a cost.
    pub is_latency: bool,
    /// The unit of the figures.
    pub unit: &'static str,
    /// The offered load.
    pub offered: String,
    /// Cloakroom, HAProxy, nginx, and no gateway.
    pub samples: [Samples; 4],
    /// The most that Cloakroom may cost: the rival (an index of `samples`; Cloakroom's own for an
    /// absolute bound) and the factor.
    pub aim: Option<(usize, f64)>,
}

/// Prints the table as Markdown.
pub fn print(rows: &[Row]) {
    println!(
        "| work | unit | offered | Cloakroom | HAProxy | nginx | no gateway | ÷ HAProxy | ÷ nginx | aim |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for row in rows {
        let [cloakroom, haproxy, nginx, direct] = &row.samples;
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.work,
            row.unit,
            row.offered,
            cloakroom.cell(),
            haproxy.cell(),
            nginx.cell(),
            direct.cell(),
            ratio(cloakroom, haproxy),
            ratio(cloakroom, nginx),
            row.verdict(),
        );
    }
}

/// Returns a line for each ratio of each row that is a cost, as `benches/ratios.tsv` has them.
pub fn ratios(rows: &[Row]) -> Vec<(String, f64)> {
    rows.iter().filter(|row| !row.is_latency).flat_map(Row::ratios).collect()
}

/// Reads lines of [`ratios`].
///
/// # Panics
/// Where a line has no number at its end.
pub fn read(text: &str) -> Vec<(String, f64)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pair = |line: &str| {
        let (of, ratio) = line.rsplit_once('\t').expect("a tabulator");
        (of.to_owned(), ratio.parse().expect("a number"))
    };
    lines.map(pair).collect()
}

/// Returns what is more than [`TOLERANCE`] above what is written down.
pub fn above(found: &[(String, f64)], written: &[(String, f64)]) -> Vec<String> {
    let bound = |of: &String| written.iter().find(|(other, _)| other == of).map(|(_, it)| *it);
    let exceeds = |(of, ratio): &(String, f64)| {
        let written = bound(of)?;
        let line = format!("{of}: {ratio:.2}, and {written:.2} is written down");
        (*ratio > written * TOLERANCE).then_some(line)
    };
    found.iter().filter_map(exceeds).collect()
}

/// Runs on one machine differ by some hundredths.
const TOLERANCE: f64 = 1.1;

impl Row {
    fn ratios(&self) -> Vec<(String, f64)> {
        let ours = self.samples[0].median();
        let of = |rival: usize| {
            let ratio = ours? / self.samples[rival].median()?;
            Some((format!("{}, {}\t{}", self.work, self.offered, NAMES[rival]), ratio))
        };
        (1..=2).filter_map(of).collect()
    }

    fn verdict(&self) -> String {
        let Some((against, bound)) = self.aim else { return String::new() };
        let ours = self.samples[0].median();
        if against == 0 {
            let word = ours.map_or("", |ours| if ours <= bound { "met" } else { "missed" });
            return format!("≤ {bound} {}: {word}", self.unit);
        }
        let theirs = self.samples[against].median();
        let word = ours
            .zip(theirs)
            .map_or("", |(ours, theirs)| if ours / theirs <= bound { "met" } else { "missed" });
        format!("≤ {bound} of {}: {word}", NAMES[against])
    }
}

fn ratio(ours: &Samples, theirs: &Samples) -> String {
    match (ours.median(), theirs.median()) {
        (Some(ours), Some(theirs)) => format!("{:.2}", ours / theirs),
        _ => "-".into(),
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The names, in the order of a row's samples.
pub const NAMES: [&str; 4] = ["Cloakroom", "HAProxy", "nginx", "no gateway"];
