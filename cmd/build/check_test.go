package main

import (
	"errors"
	"testing"

	"build/internal/build"
)

func TestCall(t *testing.T) {
	for _, tc := range []struct {
		call   string
		check  bool
		method string // "" is an ordinary build
		format string
		ignore bool
	}{
		{call: ""},
		{call: "build"},
		{check: true, method: build.CallCheck},
		{call: "check", method: build.CallCheck},
		{call: "lint", method: build.CallCheck},
		{call: "check,format=json", check: true, method: build.CallCheck, format: "json"},
		{call: "check,format=sarif,ignorestatus", method: build.CallCheck, format: "sarif", ignore: true},
		{call: "ignorestatus=true,check", method: build.CallCheck, ignore: true},
		{call: "check,ignorestatus=false", method: build.CallCheck},
		{call: "outline,format=text", method: build.CallOutline, format: "text"},
		{call: "targets", method: build.CallTargets},
		{call: "subrequests.describe,format=json", method: build.CallDescribe, format: "json"},
	} {
		c, err := (&buildFlags{call: tc.call, check: tc.check}).inspection()
		if err != nil {
			t.Errorf("%+v: %v", tc, err)
			continue
		}
		if c == nil {
			c = &call{}
		}
		if c.Call != tc.method || c.Format != tc.format || c.ignoreStatus != tc.ignore {
			t.Errorf("%+v: %+v", tc, c)
		}
	}
}

func TestWrongCalls(t *testing.T) {
	for _, tc := range []struct {
		call  string
		check bool
		want  string
	}{
		{"chek", false, "did you mean --call=check?"},
		{"lynx", false, "the choices are build, check"},
		{"format=json", false, "there is no method"},
		{"check,format=xml", false, "text, json, sarif"},
		{"targets,format=sarif", false, "formats text, json"},
		{"check,outline", false, `"outline" is neither`},
		{"check,colour=red", false, `"colour=red" is neither`},
		{"check,ignorestatus=perhaps", false, "true or false"},
		{`check,"`, false, "invalid --call"},
		{"outline", true, "different things"},
		{"build", true, "different things"},
	} {
		_, err := (&buildFlags{call: tc.call, check: tc.check}).inspection()
		wantUsage(t, err, tc.want)
		var usage *build.UsageError
		if errors.As(err, &usage) && build.ExitCode(err) != build.ExitUsage {
			t.Errorf("%s: exit code %d", tc.call, build.ExitCode(err))
		}
	}
}
