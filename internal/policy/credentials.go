package policy

import "strings"

// CredentialHeader reports whether programs authenticate themselves with a
// header of this name, in whatever case: Authorization, Cookie, and those in
// which well-known services want their keys.
func CredentialHeader(name string) bool {
	if _, known := credentialHeaders[name]; known {
		return true
	}
	_, known := credentialHeaders[strings.ToLower(name)]
	return known
}

// CredentialParameter reports whether programs authenticate themselves with a
// query parameter of this name, in whatever case.
func CredentialParameter(name string) bool {
	if _, known := credentialParameters[name]; known {
		return true
	}
	_, known := credentialParameters[strings.ToLower(name)]
	return known
}

var credentialHeaders = set(
	"authorization", "proxy-authorization", "cookie", "cookie2", "authentication", "x-authorization",
	"api-key", "apikey", "api-token", "x-api-key", "x-apikey", "x-api-token", "x-api-secret",
	"x-auth-key", "x-auth-token", "x-auth-email", "x-access-token", "x-access-key", "x-token", "x-secret",
	"x-session-token", "x-app-key", "x-app-token", "x-client-secret", "x-service-token",
	"x-goog-api-key", "x-goog-iam-authorization-token", "x-amz-security-token", "x-amz-access-token", "x-ms-token-aad-access-token",
	"ocp-apim-subscription-key", "x-functions-key", "x-vault-token", "x-consul-token", "x-nomad-token",
	"private-token", "job-token", "deploy-token", "x-gitlab-token", "x-github-token", "circle-token", "travis-api-token",
	"dd-api-key", "dd-application-key", "x-honeycomb-team", "x-insert-key", "x-newrelic-api-key", "x-sentry-auth",
	"x-shopify-access-token", "x-figma-token", "x-subscription-token", "x-rapidapi-key", "x-parse-rest-api-key",
	"x-parse-master-key", "x-algolia-api-key", "x-typesense-api-key", "xi-api-key",
	"x-jfrog-art-api", "x-nuget-apikey", "npm-auth-token", "cf-access-client-secret", "cf-access-client-id", "cf-access-token",
)

var credentialParameters = set(
	"api_key", "apikey", "api-key", "apitoken", "api_token", "key", "subscription-key",
	"access_token", "accesstoken", "access-token", "access_key", "accesskey", "auth", "auth_token", "authtoken", "authorization",
	"token", "id_token", "refresh_token", "private_token", "job_token", "oauth_token", "session_token", "sessionid",
	"client_secret", "secret", "password", "passwd", "pwd", "jwt", "bearer",
	"sig", "signature", "x-amz-signature", "x-amz-credential", "x-amz-security-token", "awsaccesskeyid",
	"x-goog-signature", "x-goog-credential", "x-goog-api-key", "googleaccessid", "appid", "app_key",
)

func set(names ...string) map[string]struct{} {
	m := make(map[string]struct{}, len(names))
	for _, name := range names {
		m[name] = struct{}{}
	}
	return m
}
