// Runs before anything is painted, so that whoever chose a theme does not see the other one flash by.
try {
  const theme = localStorage.getItem("freehold:theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch { /* Storage may be switched off; the system's preference holds then. */ }
