// A dashboard, drawn with the components that Grafana's panels are made of: @grafana/ui and @grafana/data.
//
// It is not Grafana: the layout, what turns Prometheus' answers into data frames, and the state timeline, which is not
// in these packages, are this page's. The rest (numbers, bars, graphs and their legends, tables, units, colours) is
// theirs. It reads dashboard.json and results.json, which tests/grafana/pictures.py puts beside it.
import type { DataFrame, DisplayValueAlignmentFactors, Field, FieldConfig, FieldDisplay } from '@grafana/data';
import { createRoot } from 'react-dom/client';
import '@fontsource/inter/latin-400.css';
import '@fontsource/inter/latin-500.css';
// As CommonJS: bundled as modules, their table misses its scroll bars.
import grafanaData = require('@grafana/data');
import grafanaUi = require('@grafana/ui');

const { createTheme, dateTime, FieldType, getDisplayProcessor, getFieldDisplayValues, ThemeContext } = grafanaData;
const { getDisplayValueAlignmentFactors, toDataFrame, VizOrientation } = grafanaData;
const { BarGauge, BigValue, GlobalStyles, PanelChrome, Table, TimeSeries, VizRepeater } = grafanaUi;

// One series of an answer: a value for each time, null where there is none.
type Series = { legend: string; labels: Record<string, string>; values: Array<number | null> };
// The series of each panel, by its id; times are in milliseconds.
type Results = { times: number[]; now: number; panels: Record<string, Series[]> };

// Grafana's grid, in pixels.
const COLUMNS = 24, CELL = 30, GAP = 8, TITLE = 32;
const theme = createTheme({ colors: { mode: 'dark' } });
const asTheyAre = (text: string) => text;

function finished(field: Field, seriesIndex = 0): Field {
  field.state = { seriesIndex };
  field.display = getDisplayProcessor({ field, theme });
  return field;
}

function frames(panel: any, results: Results): DataFrame[] {
  const isInstant = panel.targets[0].instant;
  // Bars are as long as they are to the longest.
  const longest = panel.type === 'bargauge' && { max: Math.max(...results.panels[panel.id].map(({ values }) => values[0]!)) };
  return results.panels[panel.id].map((series, index) => {
    const overrides = panel.fieldConfig.overrides.filter(({ matcher }: any) => matcher.options === series.legend);
    const overridden = overrides.flatMap(({ properties }: any) => properties.map(({ id, value }: any) => [id, value]));
    const config: FieldConfig = {
      ...longest, ...panel.fieldConfig.defaults, displayNameFromDS: series.legend, ...Object.fromEntries(overridden),
    };
    const frame = toDataFrame({
      refId: String(index),
      fields: [
        { name: 'Time', type: FieldType.time, values: isInstant ? [results.now] : results.times },
        { name: 'Value', type: FieldType.number, values: series.values, labels: series.labels, config },
      ],
    });
    frame.fields.forEach((field) => finished(field, index));
    return frame;
  });
}

function Numbers({ panel, data, width, height }: any) {
  const isStat = panel.type === 'stat';
  const values = () =>
    getFieldDisplayValues({
      data, theme, fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions,
      replaceVariables: asTheyAre,
    });
  return (
    <VizRepeater<FieldDisplay, DisplayValueAlignmentFactors>
      source={data} getValues={values} width={width} height={height} renderCounter={0} autoGrid={isStat}
      orientation={isStat ? VizOrientation.Auto : panel.options.orientation} itemSpacing={GAP} minVizHeight={16}
      maxVizHeight={isStat ? undefined : 300}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, width, height, count, alignmentFactors }) =>
        isStat ? (
          <BigValue {...panel.options} theme={theme} value={value.display} count={count} width={width} height={height} />
        ) : (
          <BarGauge
            {...panel.options} theme={theme} value={value.display} field={value.field} width={width} height={height}
            orientation={VizOrientation.Horizontal} alignmentFactors={alignmentFactors}
          />
        )
      }
    />
  );
}

function Graph({ panel, data, results, width, height }: any) {
  const [from, to] = [results.times[0], results.times.at(-1)].map((ms) => dateTime(ms));
  return (
    <TimeSeries
      frames={data} width={width} height={height} timeZone="utc" timeRange={{ from, to, raw: { from, to } }}
      legend={panel.options.legend} options={panel.options}
    />
  );
}

function Rows({ panel, data, width, height }: any) {
  const hidden = panel.transformations[0].options.excludeByName;
  const labels = data.map((frame: DataFrame) => frame.fields[1].labels!);
  const names = Object.keys(labels[0]).filter((name) => !hidden[name]);
  const fields = names.map((name) => ({ name, type: FieldType.string, values: labels.map((each: any) => each[name]), config: { custom: panel.fieldConfig.defaults.custom } }));
  const frame = toDataFrame({ fields });
  frame.fields.forEach((field) => finished(field));
  return <Table data={frame} width={width} height={height} />;
}

// Spans of one state beneath each other; the page's own drawing.
function States({ panel, data, results, width, height }: any) {
  const name = Math.min(300, width / 2), row = Math.min(32, (height - 30) / data.length), share = (width - name) / results.times.length;
  const mappings = panel.fieldConfig.defaults.mappings[0].options;
  const spans = (values: Array<number | null>) =>
    values.reduce<Array<{ state: number | null; start: number; length: number }>>((found, state, place) => {
      const last = found.at(-1);
      if (last && last.state === state) { last.length += 1; } else { found.push({ state, start: place, length: 1 }); }
      return found;
    }, []);
  return (
    <div style={{ position: 'relative', fontSize: 12 }}>
      {data.map((frame: DataFrame, line: number) => (
        <div key={line}>
          <div style={{ position: 'absolute', top: line * row, width: name - GAP, lineHeight: `${row}px`, textAlign: 'right', whiteSpace: 'nowrap', overflow: 'hidden', textOverflow: 'ellipsis' }}>
            {frame.fields[1].config.displayNameFromDS}
          </div>
          {spans(frame.fields[1].values).filter(({ state }) => state !== null).map(({ state, start, length }) => (
            <div key={start} style={{ position: 'absolute', top: line * row + 2, height: row - 4, left: name + start * share, width: length * share, lineHeight: `${row - 4}px`, paddingLeft: 4, overflow: 'hidden', opacity: 0.8, color: '#000', background: theme.visualization.getColorByName(mappings[String(state)].color) }}>
              {length * share > 60 && mappings[String(state)].text}
            </div>
          ))}
        </div>
      ))}
    </div>
  );
}

const KINDS: Record<string, (props: any) => React.ReactElement> = {
  stat: Numbers, bargauge: Numbers, timeseries: Graph, table: Rows, 'state-timeline': States,
};

function Panel({ panel, results, width, height }: any) {
  const Drawn = KINDS[panel.type];
  const data = frames(panel, results);
  return (
    <PanelChrome title={panel.title} width={width} height={height}>
      {(innerWidth, innerHeight) =>
        data.length ? (
          <Drawn panel={panel} data={data} results={results} width={innerWidth} height={innerHeight} />
        ) : (
          <div style={{ height: innerHeight, display: 'grid', placeItems: 'center' }}>No data</div>
        )
      }
    </PanelChrome>
  );
}

function Dashboard({ dashboard, results, width }: any) {
  const across = (cells: number) => (cells * (width + GAP)) / COLUMNS, down = (cells: number) => cells * (CELL + GAP);
  const bottom = Math.max(...dashboard.panels.map(({ gridPos }: any) => gridPos.y + gridPos.h));
  return (
    <div id="dashboard" style={{ padding: 16, width: width + 32, height: TITLE + down(bottom) + 24 }}>
      <div style={{ height: TITLE, fontSize: 18 }}>{dashboard.title}</div>
      <div style={{ position: 'relative' }}>
        {dashboard.panels.map((panel: any) => {
          const { x, y, w, h } = panel.gridPos;
          return (
            <div key={panel.id} style={{ position: 'absolute', left: across(x), top: down(y) }}>
              {panel.type === 'row' ? (
                <div style={{ fontSize: 16, lineHeight: `${CELL}px` }}>⌄ {panel.title}</div>
              ) : (
                <Panel panel={panel} results={results} width={across(w) - GAP} height={down(h) - GAP} />
              )}
            </div>
          );
        })}
      </div>
    </div>
  );
}

const read = async (path: string) => (await fetch(path)).json();
const [dashboard, results] = await Promise.all([read('dashboard.json'), read('results.json')]);
createRoot(document.getElementById('root')!).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <Dashboard dashboard={dashboard} results={results} width={1440} />
  </ThemeContext.Provider>
);
// The graphs are drawn a frame after the page is.
requestAnimationFrame(() => requestAnimationFrame(() => { document.body.dataset.drawn = 'yes'; }));
