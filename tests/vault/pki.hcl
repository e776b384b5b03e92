path "pki/root/sign-intermediate" {
  capabilities = ["update"]
  required_parameters = ["csr", "common_name", "permitted_dns_domains", "excluded_ip_ranges", "max_path_length", "ttl", "not_before_duration"]
  allowed_parameters = {
    "csr" = []
    "common_name" = ["Cloakroom anthropic", "Cloakroom git", "Cloakroom openai"]
    "permitted_dns_domains" = [["api.anthropic.example"], ["api.openai.example", "other.example"], ["git.example"]]
    "excluded_ip_ranges" = ["0.0.0.0/0,::/0"]
    "max_path_length" = ["0"]
    "ttl" = ["20s"]
    "not_before_duration" = ["3600s"]
  }
  denied_parameters = {
    "common_name" = ["", []]
    "permitted_dns_domains" = ["", []]
    "excluded_ip_ranges" = ["", []]
    "max_path_length" = ["", []]
    "ttl" = ["", []]
    "not_before_duration" = ["", []]
  }
}
