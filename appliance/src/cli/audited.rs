//! Reads the audit's files, for commands that look back.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use crate::{
    audit::{self, AuditLine},
    config::{AuditTarget, Settings},
};

/// Passes every record to `take`, the oldest first: those of `file` ("-" is standard input), or of
/// the files that the configuration names.
///
/// # Errors
///
/// A file cannot be read. The text says what to do.
pub(super) fn records(
    file: Option<&Path>,
    settings: &Settings,
    take: impl FnMut(AuditLine),
) -> Result<(), String> {
    match (file, &settings.audit) {
        (Some(file), _) if file.as_os_str() == "-" => {
            let read = read(io::stdin().lock(), take);
            read.map_err(|error| format!("cannot read standard input: {error}"))
        }
        (Some(file), _) => read_files(&[file.to_owned()], take),
        (None, AuditTarget::File(file)) => {
            let files = audit::files(&file.path).map_err(|error| {
                format!("cannot read the folder of {}: {error}", file.path.display())
            })?;
            read_files(&files, take)
        }
        (None, AuditTarget::Stdout) => Err(
            "the audit goes to the daemon's standard output: pipe it here, with --audit -, as in \
             `journalctl --output cat --unit cloakroom |`"
                .to_owned(),
        ),
    }
}

fn read_files(paths: &[PathBuf], mut take: impl FnMut(AuditLine)) -> Result<(), String> {
    for path in paths {
        let error = |error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => "; name it with --audit, or see \"audit\" in [gateway]",
                _ => "",
            };
            format!("cannot read {}: {error}{hint}", path.display())
        };
        // A file that was moved aside may have been removed since.
        match File::open(path) {
            Ok(file) => read(BufReader::new(file), &mut take).map_err(error)?,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound && paths.len() > 1 => {}
            Err(failure) => return Err(error(failure)),
        }
    }
    Ok(())
}

/// Reads records line by line. Skips a line that is no record.
fn read(mut lines: impl BufRead, mut take: impl FnMut(AuditLine)) -> io::Result<()> {
    let mut line = Vec::new();
    while lines.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? > 0 {
        AuditLine::read(&line).into_iter().for_each(&mut take);
        line.clear();
    }
    Ok(())
}

/// Most bytes of a line. No record is longer.
const MAX_LINE_BYTES: u64 = 64 * 1024;
