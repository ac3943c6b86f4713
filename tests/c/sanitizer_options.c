/* A keeper has no environment and its stderr is /dev/null: where the sanitizers write is built in. */
const char *__asan_default_options(void);
const char *__ubsan_default_options(void);

#define OPTIONS "log_path=" REPORTS ":abort_on_error=0:exitcode=99:detect_stack_use_after_return=1"

/* Leaks are not looked for: the keeper allocates nothing (another test looks at its symbols). */
const char *__asan_default_options(void) { return OPTIONS ":detect_leaks=0"; }
const char *__ubsan_default_options(void) { return OPTIONS ":print_stacktrace=1"; }
