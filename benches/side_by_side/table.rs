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

impl Row {
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
