//! A git repository over HTTPS that requires Basic: the first request without a credential gets a
//! 401, as git expects. `git http-backend` does the rest, as a CGI program (RFC 3875).

use std::{
    io::{self, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use http::{HeaderName, HeaderValue, StatusCode, header};

use super::{
    answer::{Answer, text, whole},
    record::Received,
};

/// The folder in which [`create`] puts repositories.
const ROOT: &str = "/run/lab/git";

/// Makes the repository `NAME.git` with one commit that holds `README` with the text `content`.
///
/// # Errors
/// When git fails.
pub(super) fn create(name: &str, content: &str) -> io::Result<()> {
    let script = "set -e; mkdir -p $ROOT; git init -q --bare -b main $ROOT/$NAME.git; \
        git clone -q $ROOT/$NAME.git $ROOT/$NAME.work 2>/dev/null; cd $ROOT/$NAME.work; \
        git checkout -q -b main; printf %s \"$CONTENT\" > README; git add README; \
        git -c user.name=lab -c user.email=lab@example.com commit -q -m one; \
        git push -q origin main";
    let output = Command::new("sh")
        .args(["-c", script])
        .env("ROOT", ROOT)
        .env("NAME", name)
        .env("CONTENT", content)
        .env("HOME", "/run/lab/home")
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
}

pub(super) fn answer(request: &Received) -> Answer {
    let authorization = request.header("authorization");
    if !authorization.iter().any(|value| value.starts_with("Basic ")) {
        return unauthorized();
    }
    backend(request).unwrap_or_else(|error| {
        eprintln!("git http-backend: {error}");
        let mut answer = text(error.to_string());
        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        answer
    })
}

pub(super) fn unauthorized() -> Answer {
    let mut answer = text("who are you?");
    *answer.status_mut() = StatusCode::UNAUTHORIZED;
    let realm = HeaderValue::from_static("Basic realm=\"lab\"");
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
    answer
}

/// Returns what `git http-backend` answers, whoever asks.
///
/// # Errors
/// When git fails.
pub(super) fn backend(request: &Received) -> io::Result<Answer> {
    let value = |name: &str| request.header(name).into_iter().next().unwrap_or_default();
    let mut cgi = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", Path::new(ROOT))
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("HOME", "/run/lab/home")
        .env("PATH_INFO", request.uri.path())
        .env("QUERY_STRING", request.uri.query().unwrap_or(""))
        .env("REQUEST_METHOD", request.method.as_str())
        .env("CONTENT_TYPE", value("content-type"))
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", value("content-encoding"))
        .env("GIT_PROTOCOL", value("git-protocol"))
        .env("REMOTE_USER", "lab")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // A program need not read its whole input (RFC 3875, section 4.2): only its output counts.
    let written = cgi.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(&request.body));
    let output = cgi.wait_with_output()?;
    if let Err(error) = written {
        eprintln!("git http-backend did not read the whole request: {error}");
    }
    parse(output.stdout)
}

fn parse(output: Vec<u8>) -> io::Result<Answer> {
    let end = output.windows(4).position(|at| at == b"\r\n\r\n");
    let end = end.ok_or_else(|| io::Error::other("git http-backend gave no head"))?;
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let mut answer = whole("application/octet-stream", output[end + 4..].to_vec());
    for (name, value) in head.lines().filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            let code = value.split(' ').next().and_then(|code| code.parse().ok());
            *answer.status_mut() =
                code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or_default();
        } else if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse()) {
            answer.headers_mut().insert(name, value);
        }
    }
    Ok(answer)
}
